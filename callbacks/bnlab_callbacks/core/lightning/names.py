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
    "Trainer",
    "is_lightning_module",
    "rank_zero_info",
    "rank_zero_warn",
]


def is_lightning_module(module: nn.Module) -> TypeGuard[LightningModule]:
    """Whether it is a LightningModule of either package."""
    return any(isinstance(module, package.LightningModule) for package in _imported())
