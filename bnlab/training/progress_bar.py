"""`TimedProgressBar`: a progress bar that costs next to nothing."""

from __future__ import annotations

from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

# seconds between two refreshes; one costs about 1.5 ms, twice the MLP's whole step
_INTERVAL = 0.25


class TimedProgressBar(TQDMProgressBar):
    """Lightning's progress bar, refreshed a few times a second instead of every few steps."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1)
        self._refreshed = 0.0

    def _due(self, last: bool) -> bool:
        now = monotonic()
        if not last and now - self._refreshed < _INTERVAL:
            return False
        self._refreshed = now
        return True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh when it is time, and at the end of the epoch."""
        if self._due(batch_idx + 1 == self.total_train_batches):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Refresh when it is time, and at the end of the validation."""
        if self._due(batch_idx + 1 == self.total_val_batches_current_dataloader):
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
