"""A Trainer and a loader for libraries that leave both to the user."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def trainer(steps: int, **options: Any) -> Trainer:
    """A Trainer of so many optimizer steps, which logs into the current folder, as Lightning does by itself."""
    return Trainer(max_steps=steps, **(QUIET | {"max_epochs": -1} | options))


def batches(*tensors: Tensor, size: int = 32) -> DataLoader[Any]:
    """Shuffled batches of these tensors' rows."""
    return DataLoader(TensorDataset(*tensors), size, shuffle=True, drop_last=True)
