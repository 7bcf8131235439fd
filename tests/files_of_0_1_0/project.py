"""A project with plain Lightning and every callback that keeps a state: what 0.1.0 trained, and tests train again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks import (
    ActivationMonitor,
    BatchNormMonitor,
    ChartLayout,
    EpochTimer,
    GradientMonitor,
    LayerHeatmap,
    RecordFile,
    TrainingDiagnosis,
)

BATCHES_PER_EPOCH = 7
_CLASSES = 3


class Project(pl.LightningModule):
    """A small convolution net that uses one ReLU twice: layers `relu` and `relu.2`, which version 0.1.0 calls `relu#2`.

    A resumed Lightning run begins its data anew, so each batch is made from its place in the epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, kernel_size=3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 4, kernel_size=3)
        self.logits = nn.Linear(4 * 4 * 4, _CLASSES)
        self.forgotten = nn.Linear(2, 2)  # never used: the diagnosis finds that it gets no gradient
        with torch.no_grad():
            assert self.conv2.bias is not None
            self.conv2.bias[0] = -20  # a channel that is dead

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 8, 8) → logits (N, 3)."""
        hidden = self.relu(self.norm(self.conv1(images)))
        hidden = self.relu(self.conv2(hidden))
        logits: Tensor = self.logits(hidden.flatten(1))
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The cross entropy of the batch of this place."""
        images, labels = make_batch(seed=1 + self.current_epoch * BATCHES_PER_EPOCH + batch_idx)
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The cross entropy of a batch that is never trained on."""
        images, labels = make_batch(seed=0)
        self.log("val_loss", F.cross_entropy(self(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def make_batch(seed: int) -> tuple[Tensor, Tensor]:
    """Images (16, 1, 8, 8) and their labels (16,): noise that is brighter in one of three bands."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(_CLASSES, (16,), generator=generator)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 2 * label : 2 * label + 3] += 1.5
    return images, labels


def train(folder: Path, checkpoint: Path | None = None, more: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """Train for three epochs with the callbacks, from the beginning or from a checkpoint; files go into `folder`."""
    monitors: list[pl.Callback] = [
        GradientMonitor(every_n_steps=1),
        ActivationMonitor(every_n_steps=3, dead_window=3, exact_dead=True),
        BatchNormMonitor(every_n_steps=2, smoothness_every_n_steps=4),
        EpochTimer(),
        LayerHeatmap(quantities=["grad_rms"]),
        RecordFile(),
        ChartLayout(),
        TrainingDiagnosis(),
    ]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        log_every_n_steps=2,
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[*monitors, *more],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    batches, validation = (DataLoader(TensorDataset(torch.zeros(number, 1))) for number in (BATCHES_PER_EPOCH, 1))
    torch.manual_seed(3)
    trainer.fit(Project(), batches, validation, ckpt_path=checkpoint, weights_only=True)
    return trainer
