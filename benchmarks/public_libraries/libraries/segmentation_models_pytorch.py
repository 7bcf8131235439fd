"""Nets and losses of segmentation-models-pytorch in the LightningModule of its own example notebook, on drawn discs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from benchmarks.public_libraries.libraries.training import batches, trainer

DISTRIBUTION = "segmentation-models-pytorch"
STEPS = 100


class Segmentation(LightningModule):
    """Normalises in `forward`, as the notebook does."""

    def __init__(self, net: torch.nn.Module, loss: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.register_buffer("mean", torch.tensor((123.7, 116.3, 103.5)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor((58.4, 57.1, 57.4)).view(1, 3, 1, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of the logits."""
        images, masks = batch
        loss: Tensor = self.loss(self.net((images - self.mean) / self.std), masks)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam with a cosine."""
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS, eta_min=1e-5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def discs(classes: int) -> tuple[Tensor, Tensor]:
    """Images (160, 3, 32, 32) from 0 to 255 with a disc each, and masks: (160, 1, 32, 32) of 0 and 1, or class indices.

    With classes, 0 is the background and a disc's colour is its class.
    """
    place = torch.arange(32.0)
    centre, radius = torch.randint(8, 24, (160, 2, 1, 1)), torch.randint(5, 9, (160, 1, 1))
    inside = (place[None, :, None] - centre[:, 0]) ** 2 + (place[None, None] - centre[:, 1]) ** 2 < radius**2
    colour = torch.randint(1, classes, (160,))
    images = 90 + 25 * torch.randn(160, 3, 32, 32)
    for number in range(160):
        images[number, colour[number] - 1][inside[number]] += 90
    masks = inside * colour[:, None, None]
    return images.clamp(0, 255), masks if classes > 2 else masks[:, None].float()


def _fit(net: Callable[..., torch.nn.Module], loss: torch.nn.Module, classes: int, **options: Any) -> None:
    net_made = net(encoder_weights=None, in_channels=3, classes=classes if classes > 2 else 1, **options)
    trainer(STEPS).fit(Segmentation(net_made, loss), batches(*discs(classes), size=8))


def unet_binary_dice() -> None:
    """The notebook's: Unet, one logit a pixel, Dice loss."""
    loss = smp.losses.DiceLoss("binary", from_logits=True)
    _fit(smp.Unet, loss, 2, encoder_name="resnet18", encoder_depth=3, decoder_channels=(32, 16, 16))


def unet_classes_dice() -> None:
    """Three classes, Dice loss, a mobile encoder."""
    loss = smp.losses.DiceLoss("multiclass", from_logits=True)
    _fit(smp.Unet, loss, 3, encoder_name="mobilenet_v2", encoder_depth=3, decoder_channels=(32, 16, 16))


def linknet_focal() -> None:
    """Focal loss, of one logit a pixel."""
    _fit(smp.Linknet, smp.losses.FocalLoss("binary"), 2, encoder_name="resnet18", encoder_depth=3)


FITS: dict[str, Callable[[], None]] = {
    "Unet, Dice": unet_binary_dice,
    "Unet, Dice of classes": unet_classes_dice,
    "Linknet, focal": linknet_focal,
}
