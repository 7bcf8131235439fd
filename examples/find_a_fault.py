"""A fault on purpose, found by its diagnosis, and mended.

    python examples/find_a_fault.py

A net of eight sigmoid layers cannot learn: the gradient that reaches its first layer is thousands of times too small.
`TrainingDiagnosis` says so, and where, and what to try. With ReLUs and the initialization that suits them the same net
is healthy. Some ten seconds on a CPU.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks import TrainingDiagnosis

WIDTHS = (16, *(8 * [32]), 5)


class DeepNet(LightningModule):
    """Nine linear layers, with an activation between them."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential()
        for number, (inputs, outputs) in enumerate(pairwise(WIDTHS), start=1):
            linear = nn.Linear(inputs, outputs)
            if activation is nn.ReLU:
                nn.init.kaiming_normal_(linear.weight)
                nn.init.zeros_(linear.bias)
            self.net.add_module(f"fc{number}", linear)
            if outputs != WIDTHS[-1]:
                self.net.add_module(f"act{number}", activation())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross entropy of a batch."""
        inputs, labels = batch
        loss = F.cross_entropy(self.net(inputs), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def train(activation: type[nn.Module]) -> TrainingDiagnosis:
    """One run; returns its diagnosis."""
    torch.manual_seed(0)
    labels = torch.arange(1920) % 5
    points = torch.randn(5, 16)[labels] + torch.randn(1920, 16)
    batches = DataLoader(TensorDataset(points, labels), batch_size=64, shuffle=True)
    diagnosis = TrainingDiagnosis()
    callbacks: Any = [diagnosis]
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(DeepNet(activation), batches)
    return diagnosis


def main() -> tuple[TrainingDiagnosis, TrainingDiagnosis]:
    """The faulty net, then the mended one."""
    print("With sigmoids:")
    faulty = train(nn.Sigmoid)
    for finding in faulty.findings:
        print(f"  {finding.severity}: {finding.name} at {finding.layer or 'the whole net'}; try {finding.advice[0]}")
    print("With ReLUs:")
    mended = train(nn.ReLU)
    print(f"  {mended.verdict}")
    return faulty, mended


if __name__ == "__main__":
    main()
