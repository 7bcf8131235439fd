"""Small nets, data and Trainers that the tests of the callbacks share."""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks.core import device as device_values
from bnlab_callbacks.core.lightning.monitor import Monitor
from bnlab_callbacks.core.records import Record
from bnlab_callbacks.recorders import activations as hooks_module
from bnlab_callbacks.recorders import gradients as gradient_module
from bnlab_callbacks.statistics import gradients as gradient_statistics

ROOT = tempfile.mkdtemp(prefix="bnlab-tests-")  # for what callbacks write where a test names no folder
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)


class Module(pl.LightningModule):
    """Mean squared error of `net`, plain SGD."""

    def __init__(self, net: nn.Module, optimizer: Callable[..., torch.optim.Optimizer] | None = None) -> None:
        super().__init__()
        self.net = net
        self.make_optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.mse_loss(self(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


class Unrolled(nn.Module):
    """One cell, twelve times, and a function of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(12):
            x = torch.tanh(self.cell(x))
        out: Tensor = self.out(F.relu(x))
        return out


class Hinge(nn.Module):
    """A loss with functions in it."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.softplus(-outputs * targets).mean()


class Functional(Module):
    """Activations that are functions: in a net, in the module's own forward pass; others in the loss and outside."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            super().__init__(Unrolled())
        self.criterion = Hinge()

    def forward(self, x: Tensor) -> Any:
        return self.net(x).sigmoid()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss: Tensor = self.criterion(self(x), y) + torch.tanh(self(x)).square().mean()
        return loss


class MemoryLogger(Logger):
    """Keeps what it is given: a list of (step, metrics)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    name = "memory"
    version = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def series(self, tag: str) -> list[tuple[int | None, float]]:
        return [(step, metrics[tag]) for step, metrics in self.rows if tag in metrics]

    def steps(self, tag: str) -> list[int | None]:
        return [step for step, _ in self.series(tag)]

    def tags(self) -> set[str]:
        return {tag for _, metrics in self.rows for tag in metrics}


def mlp(*extra: nn.Module) -> nn.Sequential:
    """6 → 5 → 4 → 3 units with a ReLU and a sigmoid, always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(6, 5), nn.ReLU(), *extra, nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3)]
        return nn.Sequential(*layers)


def data(samples: int = 24, features: Sequence[int] = (6,), targets: Sequence[int] = (3,)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(samples, *features, generator=generator),
        torch.randn(samples, *targets, generator=generator),
    )


def loader(samples: int = 24, batch_size: int = 8, features: Sequence[int] = (6,)) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(samples, features)), batch_size=batch_size)


def trainer(*callbacks: Any, **options: Any) -> pl.Trainer:
    """A quiet Trainer on the CPU that logs every step into memory."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": ROOT,
        "logger": MemoryLogger(),
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**(defaults | options))


def memory(run: pl.Trainer) -> MemoryLogger:
    logger = run.logger
    assert isinstance(logger, MemoryLogger)
    return logger


def hooks_of(model: nn.Module) -> list[Any]:
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


class Each(pl.Callback):
    """Keeps every record that a monitor makes, on every rank."""

    def __init__(self, monitor: Monitor) -> None:
        self.records: list[dict[str, float]] = []
        self.monitor = monitor
        self.read = monitor.read_records
        monitor.read_records = self.note  # type: ignore[method-assign]

    def note(self, taken: Any, into: list[Record]) -> None:
        before = len(into)
        self.read(taken, into)
        self.records += [record.values for record in into[before:]]


def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take the ways that are for accelerators; gives the number of tensors in each copy to the host."""
    copies: list[int] = []
    copy = device_values.copy_to_host
    monkeypatch.setattr(gradient_module, "can_pack", lambda tensor: False)
    monkeypatch.setattr(gradient_statistics, "_ordinary_sums", lambda values, scratch: None)
    monkeypatch.setattr(hooks_module, "is_small", lambda output: False)
    monkeypatch.setattr(device_values, "is_away", lambda tensor: True)
    monkeypatch.setattr(device_values, "copy_to_host", lambda tensors: copies.append(len(tensors)) or copy(tensors))
    return copies
