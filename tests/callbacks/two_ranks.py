"""Runs under DDP, started once per rank by test_two_ranks.py; writes what each rank saw to a JSON file.

Arguments: the output file. Rank and addresses come in the environment, as from a cluster's launcher.
"""

import json
import os
import sys
import time
import warnings
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from bnlab_callbacks import ActivationMonitor, AttentionMonitor, EpochTimer, GradientMonitor
from bnlab_callbacks.core.lightning.trainer import sharding_strategy
from bnlab_callbacks.recorders import activations as activation_module
from tests.callbacks import two_ranks_batch_norm
from tests.callbacks.small_runs import Each, Functional, MemoryLogger, Module, data, mlp, trainer
from tests.callbacks.test_attention_monitor import Transformer, samples

RANK = int(os.environ["LOCAL_RANK"])


def ddp(*callbacks: Any, **options: Any) -> pl.Trainer:
    defaults = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    return trainer(*callbacks, **(defaults | options))


def shard(samples: int = 24, batch_size: int = 4) -> DataLoader[Any]:
    """Every second sample: batches of both ranks together are the consecutive batches of one process."""
    dataset = TensorDataset(*data(samples))
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, 2, RANK, shuffle=False)
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler)


class Sleepy(Module):
    """Sleeps on rank 1 only."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if RANK == 1:
            time.sleep(0.1)
        return super().training_step(batch, batch_idx)


def statistics() -> dict[str, Any]:
    """All three callbacks; gradients clipped and accumulated over two batches."""
    gradients, activations, timer = GradientMonitor(), ActivationMonitor(dead_window=2), EpochTimer()
    each = Each(gradients), Each(activations)
    run = ddp(gradients, activations, timer, *each, accumulate_grad_batches=2, gradient_clip_val=0.05)
    run.fit(Sleepy(mlp()), shard(48))
    assert isinstance(run.logger, MemoryLogger)
    return {
        "gradients": each[0].records,
        "activations": each[1].records,
        "time": timer.latest,
        "tags": sorted(tag for tag in run.logger.tags() if "/" in tag),
        "epoch": {tag: float(value) for tag, value in run.callback_metrics.items() if "_epoch/" in tag},
    }


def attention() -> dict[str, Any]:
    """Two accumulated batches of two sequences on each rank."""
    each = Each(monitor := AttentionMonitor())
    run = ddp(monitor, each, accumulate_grad_batches=2)
    dataset = TensorDataset(*samples(24))
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, 2, RANK, shuffle=False)
    run.fit(Module(Transformer()), DataLoader(dataset, batch_size=2, sampler=sampler))
    return {"records": each.records}


def functional() -> list[dict[str, float]]:
    """Activations that are no modules; under DDP `training_step` itself runs within a forward pass."""
    each = Each(monitor := ActivationMonitor())
    ddp(monitor, each).fit(Functional(), shard())
    return each.records


def uneven() -> dict[str, Any]:
    """Rank 1 sees fewer samples in its last batch."""
    monitor = ActivationMonitor()
    each = Each(monitor)
    x, y = data(16)
    mine = slice(0, 8) if RANK == 0 else slice(8, 13)
    ddp(monitor, each).fit(Module(mlp()), DataLoader(TensorDataset(x[mine], y[mine]), batch_size=4))
    return {"activations": each.records}


class Branching(nn.Module):
    """Rank 1 leaves an activation out at every second call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.a, self.b = nn.Linear(6, 3), nn.ReLU(), nn.Sigmoid()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.a(self.fc(x))
        return out if RANK == 1 and self.calls % 2 == 0 else self.b(out)


def other_layers() -> dict[str, Any]:
    monitor = ActivationMonitor()
    each = Each(monitor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = ddp(monitor, each)
        run.fit(Module(Branching()), shard())
    told = [str(warning.message) for warning in caught if "ActivationMonitor" in str(warning.message)]
    return {"records": len(each.records), "steps": run.global_step, "told": told}


def failure_on_one() -> dict[str, Any]:
    """The diagnostic breaks on rank 1 alone, at the second step."""
    original, calls = activation_module.reduce_outputs, 0

    def broken(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if RANK == 1 and calls > 1:
            raise ArithmeticError("boom")
        return original(*args)

    activation_module.reduce_outputs = broken
    try:
        monitor = ActivationMonitor()
        each = Each(monitor)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = ddp(monitor, each)
            run.fit(Module(mlp()), shard())
    finally:
        activation_module.reduce_outputs = original
    told = [str(warning.message) for warning in caught if "is off" in str(warning.message)]
    return {"records": len(each.records), "steps": run.global_step, "told": told, "active": monitor.active}


def sharded_by_hand() -> str | None:
    """A weight whose rows lie on two ranks, as FSDP2 has them."""
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Linear(4, 4)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
    return sharding_strategy(SimpleNamespace(strategy=object(), lightning_module=model))  # type: ignore[arg-type]


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {
        run.__name__: run()
        for run in (statistics, functional, attention, uneven, other_layers, failure_on_one, sharded_by_hand)
    }
    results["batch_norm"] = {run.__name__: run() for run in two_ranks_batch_norm.RUNS}
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(results, file)
    torch.distributed.barrier()  # gloo aborts a process whose peers have already gone
    torch.distributed.destroy_process_group()
