"""The callbacks in a project of one's own, in three lines.

    python examples/own_project.py

Trains a classifier of random clusters on the CPU for a few seconds. Records lie in `lightning_logs`: look at them with
`tensorboard --logdir lightning_logs`, or, without TensorBoard, in `metrics.csv`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor, TrainingDiagnosis  # 1


class Classifier(LightningModule):
    """Any LightningModule; nothing in it knows of the callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross entropy of a batch."""
        inputs, labels = batch
        loss = F.cross_entropy(self.net(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def clusters() -> DataLoader[Any]:
    """2,048 points around four centres."""
    labels = torch.arange(2048) % 4
    points = torch.randn(4, 8)[labels] * 2 + torch.randn(2048, 8)
    return DataLoader(TensorDataset((points - points.mean(0)) / points.std(0), labels), batch_size=64, shuffle=True)


def main() -> dict[str, float]:
    """Train; returns the last epoch's numbers."""
    torch.manual_seed(0)
    callbacks: Any = [GradientMonitor(), ActivationMonitor(), EpochTimer(), TrainingDiagnosis()]  # 2
    trainer = Trainer(max_epochs=3, log_every_n_steps=10, accelerator="cpu", callbacks=callbacks)  # 3
    trainer.fit(Classifier(), clusters())
    return {tag: float(value) for tag, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    for tag, value in sorted(main().items()):
        print(f"{tag:40} {value:.3g}")
