"""A small classification, nets for it, and runs that are diagnosed."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks import TrainingDiagnosis
from tests.helpers.silent_trainer import trainer_in


class Net(LightningModule):
    """Cross entropy over three classes, SGD with momentum."""

    def __init__(self, net: nn.Module, lr: float = 0.1, probabilities: bool = False) -> None:
        super().__init__()
        self.net, self.lr, self.probabilities = net, lr, probabilities

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out = self.net(x)
        return F.cross_entropy(out.softmax(1) if self.probabilities else out, y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def batches(scale: float = 1.0, bad: int | None = None) -> DataLoader[Any]:
    """Three clouds in six dimensions, 16 batches of 16; one batch may hold a NaN."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(256) % 3
    x = scale * (F.one_hot(y, 6) * 2.0 + torch.randn(256, 6, generator=generator))
    if bad is not None:
        x[bad * 16, 0] = math.nan
    return DataLoader(TensorDataset(x, y), batch_size=16)


def net(*hidden: nn.Module, seed: int = 1) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        named = nn.Sequential()
        named.add_module("fc1", nn.Linear(6, 20))
        named.add_module("act1", nn.ReLU())
        for index, module in enumerate(hidden):
            named.add_module(f"more{index}", module)
        named.add_module("out", nn.Linear(20, 3))
        return named


def fit(folder: Path, module: LightningModule, loader: DataLoader[Any] | None = None, **options: Any) -> Any:
    diagnosis = options.pop("diagnosis", None) or TrainingDiagnosis()
    callbacks = [*options.pop("callbacks", []), diagnosis]
    trainer_in(folder, callbacks=callbacks, **({"max_epochs": 3} | options)).fit(module, loader or batches())
    return diagnosis
