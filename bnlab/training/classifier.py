"""`Classifier`: an image classifier trained after the protocol of Schilling 2016, chapter 6."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from bnlab.data import IGNORED, Batch
from bnlab.errors import InputError
from bnlab.nets import ActivationName, Architecture, InitScheme, NormPosition, build_net, initialize
from bnlab.training.epoch_totals import EpochTotals
from bnlab.training.penalty import parameter_groups, penalty
from bnlab.training.ranks import state_of_this_rank, states_of_all_ranks
from bnlab_callbacks import RecordSchedule, moment_of, publish_values

# the accuracy of the best five guesses means something where there are many classes (CIFAR-100)
_TOP5_FROM = 100


class Classifier(LightningModule):
    """The thesis's MLP or CNN (tables 6.2, 6.3), with its loss, optimizer and schedule; the defaults are its baseline.

    Inputs are standardised images (N, C, H, W), outputs logits (N, classes). The loss is the cross entropy; the L2
    penalty acts through the optimizer's weight decay and is logged apart, and recorded gradients are those of the loss
    without it. The learning rate is multiplied by `lr_factor` when the validation accuracy has not improved for
    `lr_patience` epochs (section 6.2).

    Logs per epoch `train_loss`, `train_acc`, `train_penalty` (λ‖w‖²), `val_loss`, `val_acc`, `lr`, and every
    `log_every_n_steps` steps `train_loss_step`; for 100 classes and more also `val_acc_top5`; in tests `test_loss`,
    `test_acc`, `test_acc_top5`.

    Args:
        architecture: Net of table 6.2 (mlp) or 6.3 (cnn).
        activation: Nonlinearity after every hidden layer.
        batch_norm: Whether every hidden layer is batch-normalised.
        norm_position: Batch norm before or after the nonlinearity.
        init: Weight initialization; auto is Kaiming for rectifiers, Xavier for saturating functions.
        init_std: Standard deviation of `init: normal`.
        dropout: Probability of dropping a unit (1 minus the thesis's keep probability).
        weight_decay: Strength λ of the L2 penalty λ‖w‖² on weights (equation 2.43); PyTorch's weight decay is 2λ.
        lr: Initial learning rate of Nesterov SGD.
        momentum: Momentum of Nesterov SGD; 0 is plain SGD.
        lr_factor: What the learning rate is multiplied by when validation accuracy stalls.
        lr_patience: Epochs without improvement before it is (PyTorch's `patience` + 1).
        compile: Whether torch.compile compiles the net.
        channels_last: Whether images and convolutions use the channels-last memory format.
        num_classes: Number of classes; the command line takes it from the data.
        in_channels: Channels of the images; the command line takes it from the data.
        image_size: (H, W) of the images; the command line takes it from the data.

    Raises:
        InputError: an argument is out of range, or the images are too small for the CNN's five poolings.
    """

    def __init__(
        self,
        architecture: Architecture = "mlp",
        activation: ActivationName = "relu",
        batch_norm: bool = False,
        norm_position: NormPosition = "before",
        init: InitScheme = "auto",
        init_std: float | None = None,
        dropout: float = 0.0,
        weight_decay: float = 0.0,
        lr: float = 0.01,
        momentum: float = 0.9,
        lr_factor: float = 0.5,
        lr_patience: int = 5,
        compile: bool = False,
        channels_last: bool = False,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (32, 32),
    ) -> None:
        super().__init__()
        _check_optimization(lr, momentum, weight_decay, lr_factor, lr_patience)
        self.save_hyperparameters(ignore="image_size")
        self.save_hyperparameters({"image_size": list(image_size)})  # a list: YAML has no tuples
        self.net = build_net(
            architecture,
            in_channels,
            image_size,
            num_classes,
            activation=activation,
            batch_norm=batch_norm,
            norm_position=norm_position,
            dropout=dropout,
        )
        initialize(self.net, init, activation, init_std)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net.to(memory_format=self.memory_format)
        if compile:
            self.net.compile()
        self.metrics = nn.ModuleDict({stage: _metrics(num_classes) for stage in ("val", "test")})
        self._totals = EpochTotals()
        self._schedule = RecordSchedule()

    def setup(self, stage: str) -> None:
        """Start anew, also after a training that was broken off; a checkpoint's state is loaded after this."""
        if stage == "fit":
            self._totals = EpochTotals()
            self._schedule.restart()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what belongs to an epoch that is not over."""
        checkpoint["epoch_totals"] = states_of_all_ranks(self.trainer, self._totals.state_dict())
        checkpoint["step_loss_schedule"] = self._schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on within that epoch; checkpoints of other programs have nothing of the kind."""
        if self._trainer is None or "epoch_totals" not in checkpoint:
            return
        totals = state_of_this_rank(self.trainer, checkpoint["epoch_totals"])
        if totals is not None:
            self._totals.load_state_dict(totals, self.trainer.strategy.root_device)  # the net is not moved there yet
        self._schedule.load_state_dict(checkpoint["step_loss_schedule"])

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, classes)."""
        logits: Tensor = self.net(images.contiguous(memory_format=self.memory_format))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The cross entropy of a batch."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        self._totals.add(loss, logits, labels)
        return loss

    def on_train_start(self) -> None:
        """Log the loss of the steps that the diagnostics record."""
        self._schedule.start(self.trainer.log_every_n_steps)  # type: ignore[attr-defined] # set by a connector

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the step's loss on the diagnostics' steps; `self.log` at every step would cost more than the MLP."""
        if self._schedule.due(moment_of(self.trainer)):
            self._schedule.mark(moment_of(self.trainer))
            loss = self.trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean")
            # Lightning divides the loss that hooks see by the number of accumulated batches
            whole = float(loss) * self.trainer.accumulate_grad_batches
            publish_values(self.trainer, {"train_loss_step": whole})

    def on_train_epoch_end(self) -> None:
        """Log the epoch's averages and the learning rate that it was trained with."""
        averages = self._totals.pop()
        if averages is None:
            return
        self.log("train_loss", averages.loss.float(), prog_bar=True, sync_dist=True)
        self.log("train_acc", averages.accuracy.float(), sync_dist=True)
        self.log("train_penalty", penalty(self.net, self.hparams["weight_decay"]), sync_dist=True)
        self.log("lr", float(self.trainer.optimizers[0].param_groups[0]["lr"]), sync_dist=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count loss and accuracy over the validation set."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count loss and accuracy over the test set."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Class probabilities (N, classes), in float32 or wider."""
        logits = self.forward(batch[0])
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)

    def _evaluate(self, batch: Batch, stage: str) -> None:
        """Metrics over all samples of all ranks, each once: place-holders that keep ranks in step are ignored."""
        images, labels = batch
        logits = self(images)
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        for name, metric in cast(nn.ModuleDict, self.metrics[stage]).items():
            assert isinstance(metric, Metric)
            if name == "loss":
                metric.update(losses[labels != IGNORED])  # weights are lost under nan_strategy="disable" (TM#3434)
            else:
                metric.update(logits, labels)
            self.log(f"{stage}_{name}", metric, on_step=False, on_epoch=True, prog_bar=name == "acc")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Nesterov SGD, and a learning rate that falls when validation accuracy stalls (sections 2.7.1 and 2.8.2)."""
        p = self.hparams
        groups = parameter_groups(self.net, p["weight_decay"])
        optimizer = torch.optim.SGD(groups, lr=p["lr"], momentum=p["momentum"], nesterov=p["momentum"] > 0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            mode="max",
            factor=p["lr_factor"],
            patience=p["lr_patience"] - 1,  # PyTorch acts on the epoch after `patience` bad ones
            threshold=0.0,
        )
        # after the other epochs there is no accuracy, or an old one
        every = 1 if self._trainer is None else self.trainer.check_val_every_n_epoch or 1
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "val_acc", "frequency": every},
        }


def _metrics(num_classes: int) -> nn.ModuleDict:
    # a diverged net's loss is NaN, and that is its result
    metrics: dict[str, nn.Module] = {"loss": MeanMetric(nan_strategy="disable")}
    options: dict[str, Any] = {"average": "micro", "ignore_index": IGNORED, "validate_args": False}
    metrics["acc"] = MulticlassAccuracy(num_classes, **options)
    if num_classes >= _TOP5_FROM:
        metrics["acc_top5"] = MulticlassAccuracy(num_classes, top_k=5, **options)
    return nn.ModuleDict(metrics)


def _check_optimization(lr: float, momentum: float, weight_decay: float, lr_factor: float, lr_patience: int) -> None:
    ranges = {
        f"lr={lr}: it must be a positive number; the thesis uses 0.1, 0.01 and 0.001": lr > 0 and math.isfinite(lr),
        f"momentum={momentum}: it must lie in [0, 1); the thesis uses 0.9": 0 <= momentum < 1,
        f"weight_decay={weight_decay}: it must not be negative; the thesis uses 0.0005": 0 <= weight_decay < math.inf,
        f"lr_factor={lr_factor}: it must lie between 0 and 1; the thesis uses 0.5": 0 < lr_factor < 1,
        f"lr_patience={lr_patience}: it must be at least one epoch; the thesis uses 5": lr_patience >= 1,
    }
    for message, holds in ranges.items():
        if not holds:
            raise InputError(message + ".")
