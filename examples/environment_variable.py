"""The callbacks by environment variable, in a project whose code does not know them.

    BNLAB_CALLBACKS="GradientMonitor(every_n_steps=5),RecordFile" python examples/environment_variable.py

Where `bnlab-callbacks` is installed, Lightning asks it for callbacks whenever a Trainer is made. Without the variable
this is an ordinary Lightning run; with it, it leaves `records.csv` beside the run's other files.
"""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Regression(LightningModule):
    """A net that learns the sine of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean squared error of a batch."""
        inputs, targets = batch
        loss = F.mse_loss(self.net(inputs), targets)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with its usual learning rate."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> str | None:
    """Train; returns the run's folder."""
    torch.manual_seed(0)
    inputs = torch.linspace(-1, 1, 1024).unsqueeze(1)
    batches = DataLoader(TensorDataset(inputs, torch.sin(3 * inputs)), batch_size=64, shuffle=True)
    trainer = Trainer(max_epochs=3, log_every_n_steps=5, accelerator="cpu")
    trainer.fit(Regression(), batches)
    return trainer.log_dir


if __name__ == "__main__":
    print(main())
