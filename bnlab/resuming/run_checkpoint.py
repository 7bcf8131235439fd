"""`RunCheckpoint`: Lightning's ModelCheckpoint, writing at moments from which a run can resume exactly."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from bnlab_callbacks import publish_kept


class RunCheckpoint(ModelCheckpoint):
    """Save the model when ModelCheckpoint would, but write it when everything of the step or epoch is done.

    ModelCheckpoint saves in the middle of Lightning's work: the schedule of the learning rate has not seen the epoch's
    validation accuracy yet, and the epoch's losses are not logged. A run resumed from there is another run. So what is
    to be saved is written just before the next batch begins, or when training ends.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.writing = False  # now, at such a moment
        self._due: list[Callable[[], None]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is due yet."""
        super().setup(trainer, pl_module, stage)
        self._due = []

    def write_due(self, trainer: Trainer) -> None:
        """Write what is to be saved. To be called between two batches, by all ranks."""
        if not self._due:
            return
        due, self._due = self._due, []
        publish_kept(trainer)  # a checkpoint holds no records
        self.writing = True
        try:
            for action in due:
                action()
        finally:
            self.writing = False

    def save_now(self, trainer: Trainer) -> None:
        """Write the state as `last.ckpt`, if it is not saved yet. To be called between two batches, by all ranks."""
        if not self._should_skip_saving_checkpoint(trainer):
            assert self.dirpath is not None
            self._save_checkpoint(trainer, os.path.join(self.dirpath, f"{self.CHECKPOINT_NAME_LAST}.ckpt"))
        self.write_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the last epoch left, also where it ended between two of `every_n_train_steps`."""
        super().on_train_end(trainer, pl_module)
        if self.save_top_k or self.save_last:
            self.save_now(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """With `save_on_exception` write what there is; it may be in the middle of a step."""
        self._due.clear()
        super().on_exception(trainer, pl_module, exception)
        for action in self._due:
            action()
        self._due.clear()

    # what ModelCheckpoint's hooks do to files, put off

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        self._due.append(partial(super()._save_checkpoint, trainer, filepath))

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._due.append(partial(super()._remove_checkpoint, trainer, filepath))

    def _link_checkpoint(self, trainer: Trainer, filepath: str, linkpath: str) -> None:  # type: ignore[override]
        self._due.append(partial(super()._link_checkpoint, trainer, filepath, linkpath))
