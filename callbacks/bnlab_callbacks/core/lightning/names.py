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
    "Trainer",
    "rank_zero_warn",
]
