"""Self-supervised methods of lightly, put together as its own examples do, on images of noise seen twice with noise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models.modules.heads import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
    VICRegProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks.public_libraries.libraries.training import batches, trainer

DISTRIBUTION = "lightly"


class Method(LightningModule):
    """A backbone and a projection head; `loss_of` of two views (n, 3, 16, 16) is the method."""

    lr = 0.06

    def __init__(self, head: nn.Module, loss: nn.Module, prediction: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone, self.projection_head, self.criterion = backbone(), head, loss
        if prediction is not None:
            self.prediction_head = prediction

    def project(self, images: Tensor) -> Tensor:
        """What the loss compares, (n, d)."""
        projected: Tensor = self.projection_head(self.backbone(images).flatten(1))
        return projected

    def loss_of(self, one: Tensor, other: Tensor) -> Tensor:
        """Contrast or agreement of the two views' projections."""
        loss: Tensor = self.criterion(self.project(one), self.project(other))
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Draw two views of the images."""
        one, other = (batch[0] + 0.4 * torch.randn_like(batch[0]) for _ in range(2))
        return self.loss_of(one, other)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The examples' own."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class SimSiam(Method):
    """One net, whose projections are detached."""

    def loss_of(self, one: Tensor, other: Tensor) -> Tensor:
        """Each view's prediction of the other's projection."""
        z0, z1 = self.project(one), self.project(other)
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        loss: Tensor = 0.5 * (self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0))
        return loss


class Momentum(Method):
    """A second net that follows the first."""

    def __init__(self, head: nn.Module, loss: nn.Module, prediction: nn.Module | None = None) -> None:
        super().__init__(head, loss, prediction)
        self.backbone_momentum, self.head_momentum = copy.deepcopy(self.backbone), copy.deepcopy(head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)

    def project_momentum(self, images: Tensor) -> Tensor:
        """Without gradients."""
        projected: Tensor = self.head_momentum(self.backbone_momentum(images).flatten(1))
        return projected.detach()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Let it follow first."""
        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.projection_head, self.head_momentum, m=0.99)
        return super().training_step(batch, batch_idx)


class MoCo(Momentum):
    """Keys of the second net, negatives from a memory bank."""

    def loss_of(self, one: Tensor, other: Tensor) -> Tensor:
        """Queries against keys."""
        loss: Tensor = self.criterion(self.project(one), self.project_momentum(other))
        return loss


class BYOL(Momentum):
    """Predictions of the second net's projections."""

    def loss_of(self, one: Tensor, other: Tensor) -> Tensor:
        """Both ways round."""
        p0, p1 = (self.prediction_head(self.project(view)) for view in (one, other))
        z0, z1 = self.project_momentum(one), self.project_momentum(other)
        loss: Tensor = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        return loss


def backbone() -> nn.Module:
    """Images (n, 3, 16, 16) → (n, 64, 1, 1)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))


def _fit(method: Callable[..., Method], *parts: nn.Module, lr: float = 0.06) -> None:
    module = method(*parts)
    module.lr = lr
    trainer(200).fit(module, batches(torch.randn(512, 3, 16, 16), size=64))


FITS: dict[str, Callable[[], None]] = {
    "SimCLR": lambda: _fit(Method, SimCLRProjectionHead(64, 64, 32), NTXentLoss()),
    "MoCo": lambda: _fit(MoCo, MoCoProjectionHead(64, 64, 32), NTXentLoss(memory_bank_size=(512, 32))),
    "BYOL": lambda: _fit(
        BYOL, BYOLProjectionHead(64, 128, 32), NegativeCosineSimilarity(), BYOLPredictionHead(32, 128, 32)
    ),
    "SimSiam": lambda: _fit(
        SimSiam, SimSiamProjectionHead(64, 64, 32), NegativeCosineSimilarity(), SimSiamPredictionHead(32, 16, 32)
    ),
    "Barlow Twins": lambda: _fit(Method, BarlowTwinsProjectionHead(64, 128, 64), BarlowTwinsLoss()),
    "VICReg": lambda: _fit(Method, VICRegProjectionHead(64, 128, 64, num_layers=2), VICRegLoss(), lr=0.01),
}
