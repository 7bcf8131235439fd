"""`PredictionWriter`: the class probabilities of the test images, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bnlab.data import IGNORED
from bnlab.files.durable_files import replace_durably
from bnlab_callbacks import gather_ranks


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
