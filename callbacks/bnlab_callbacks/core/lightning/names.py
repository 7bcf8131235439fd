"""Lightning's names, from whichever of its two distributions is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import rank_zero_warn
else:
    try:
        from lightning.pytorch import Callback, LightningModule, Trainer
        from lightning.pytorch.utilities import rank_zero_warn
    except ImportError:  # only `pytorch_lightning` is installed
        from pytorch_lightning import Callback, LightningModule, Trainer
        from pytorch_lightning.utilities import rank_zero_warn

__all__ = [
    "Callback",
    "LightningModule",
    "QuietCallback",
    "Trainer",
    "logged_step",
    "rank_zero_warn",
    "sharding_strategy",
]


if TYPE_CHECKING:
    QuietCallback = Callback
else:

    class QuietCallback(Callback):
        """A callback that takes part in a batch only where a subclass defines a hook.

        Lightning calls every hook of every callback in every batch, 2 µs a time, but not one that is None.
        """

        on_train_batch_start = None
        on_before_zero_grad = None
        on_before_backward = None
        on_after_backward = None
        on_before_optimizer_step = None
        on_train_batch_end = None
        on_validation_batch_start = None
        on_validation_batch_end = None


def logged_step(trainer: Trainer) -> int:
    """The step at which `self.log` would write now: batches that ended in an optimizer step, whatever the optimizers.

    `trainer.global_step` counts each optimizer of a GAN apart and would put diagnostics beside the losses' axis.
    Lightning's own callbacks (LearningRateMonitor, DeviceStatsMonitor) read the same counter.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def sharding_strategy(trainer: Trainer) -> str | None:
    """Name of what shards parameters over ranks, so that a rank holds only a part of a layer; else None."""
    name = type(trainer.strategy).__name__
    sharded = ("DeepSpeed", "FSDP", "ModelParallel", "XLAFSDP")
    if name.startswith(sharded):
        return name
    # FSDP2 and tensor parallelism by the user's own hand, under any strategy
    kinds = {type(parameter).__name__ for parameter in trainer.lightning_module.parameters()}
    return "DTensor" if "DTensor" in kinds else None
