"""The output of a run beside its diagnostics: TensorBoard's events, the progress bar, the predictions."""

import warnings
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from bnlab.data import IGNORED
from bnlab.files.durable_files import replace_durably
from bnlab_callbacks import gather_ranks


class EventLogger(TensorBoardLogger):
    """Writes events until they cannot be written, and then says once what is lost.

    TensorBoard raises an error of its writing thread at some later value, which would end training.
    """

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer."""
        writer: Any = super().experiment  # on ranks other than 0 something that does nothing
        new = isinstance(writer, SummaryWriter) and not isinstance(writer.file_writer, _EventFile)
        if new and writer.file_writer is not None:
            writer.file_writer = _EventFile(writer.file_writer)
            writer.all_writers = {writer.file_writer.get_logdir(): writer.file_writer}
        return writer


class _EventFile:
    """An event file (torch's `FileWriter`) that is given up when it cannot be written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._file, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if self._failed and name != "get_logdir":  # half an event may stand in the file: none behind it is read
                return None
            try:
                return method(*arguments, **named)
            except OSError as error:
                self._failed = True
                warnings.warn(
                    f"No TensorBoard events for the rest of this run: {type(error).__name__}: {error}", stacklevel=2
                )
                return None

        return call


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


class PredictionWriter(Callback):
    """Writes `probabilities` (N, classes) float32 and `labels` (N,) int64, in the order of the test set, as .npz.

    Args:
        path: the file; it is written whole or not at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._probabilities: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's probabilities."""
        self._probabilities.append(outputs.float())
        self._labels.append(batch[1])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the ranks' shares together (rank r has samples r, r + ranks, …) and write the file."""
        shares = [torch.cat(self._probabilities), torch.cat(self._labels)]
        if trainer.world_size > 1:
            shares = [gather_ranks(trainer, share).transpose(0, 1).flatten(0, 1) for share in shares]
        probabilities, labels = (share.cpu() for share in shares)
        real = labels != IGNORED  # place-holders that keep ranks in step
        if trainer.is_global_zero:
            shown = probabilities[real].numpy(), labels[real].numpy()
            replace_durably(self.path, lambda file: np.savez(file, probabilities=shown[0], labels=shown[1]))
            print(f"\nclass probabilities of {int(real.sum())} test images: {self.path}")
