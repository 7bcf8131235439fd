"""Lightning's names, from whichever of its two packages is in use: `lightning.pytorch` or `pytorch_lightning`.

They hold the same code twice, so a class of one is none of the other, and one environment can have both: the
distribution `lightning` brings `pytorch_lightning` along.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, TypeGuard

from torch import nn

_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _imported() -> list[ModuleType]:
    return [module for name in _NAMES if (module := sys.modules.get(name))]


if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
else:

    def _installed() -> list[ModuleType]:
        for name in _NAMES:
            try:
                return [import_module(name)]
            except ImportError:
                continue
        raise ImportError("Lightning is not installed: pip install lightning, or pip install pytorch-lightning.")

    _PACKAGES = _imported() or _installed()  # the user's Trainer comes from what the user's code has imported
    _BASES = tuple(package.Callback for package in _PACKAGES)
    Callback = _BASES[0] if len(_BASES) == 1 else type("Callback", _BASES, {"__module__": __name__})
    LightningModule, Trainer = _PACKAGES[0].LightningModule, _PACKAGES[0].Trainer
    rank_zero_info, rank_zero_warn = _PACKAGES[0].utilities.rank_zero_info, _PACKAGES[0].utilities.rank_zero_warn

__all__ = [
    "Callback",
    "LightningModule",
    "QuietCallback",
    "Trainer",
    "is_lightning_module",
    "logged_step",
    "rank_zero_info",
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


def is_lightning_module(module: nn.Module) -> TypeGuard[LightningModule]:
    """Whether it is a LightningModule of either package."""
    return any(isinstance(module, package.LightningModule) for package in _imported())


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
