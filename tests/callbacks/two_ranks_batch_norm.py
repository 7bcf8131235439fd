"""BatchNormMonitor under DDP: the runs two_ranks.py adds to its own, one process for each rank."""

import os
import warnings
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from bnlab_callbacks.batch_norm_monitor import BatchNormMonitor
from bnlab_callbacks.recorders import batch_norm
from bnlab_callbacks.replica import step_replica
from tests.callbacks.small_runs import Each, Module, data, trainer
from tests.callbacks.test_batch_norm_monitor import normalised

RANK = int(os.environ["LOCAL_RANK"])


def recorded(net: nn.Module, **options: Any) -> dict[str, Any]:
    """What a run over every second sample records on this rank."""
    monitor = BatchNormMonitor(smoothness_every_n_steps=1)
    each = Each(monitor)
    dataset = TensorDataset(*data(options.pop("samples", 24)))
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, 2, RANK, shuffle=False)
    ddp = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(monitor, each, **(ddp | options))
        run.fit(Module(net), DataLoader(dataset, batch_size=4, sampler=sampler))
    told = [str(warning.message) for warning in caught if "BatchNormMonitor" in str(warning.message)]
    weights = [value.tolist() for value in run.lightning_module.state_dict().values()]
    return {"records": each.records, "steps": run.global_step, "told": told, "weights": weights}


def values() -> dict[str, Any]:
    return recorded(normalised())


def unwatched() -> dict[str, Any]:
    """The same without the monitor."""
    dataset = TensorDataset(*data())
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, 2, RANK, shuffle=False)
    run = trainer(devices=2, strategy="ddp", use_distributed_sampler=False)
    run.fit(Module(normalised()), DataLoader(dataset, batch_size=4, sampler=sampler))
    return {"weights": [value.tolist() for value in run.lightning_module.state_dict().values()]}


class Branching(nn.Module):
    """Rank 1 calls its norm twice in the second training step."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(6, 3), nn.BatchNorm1d(3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.norm(self.fc(x))
        return self.norm(out) if RANK == 1 and self.calls == 2 else out


def other_layers() -> dict[str, Any]:
    return recorded(Branching())


def failure_on_one(module: Any, name: str) -> dict[str, Any]:
    """What `name` names breaks on rank 1 alone, from the third call; 20 steps, so that some are read together."""
    original, calls = getattr(module, name), 0

    def broken(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if RANK == 1 and calls > 2:
            raise ArithmeticError("boom")
        return original(*args)

    setattr(module, name, broken)
    try:
        return recorded(normalised(), samples=160)
    finally:
        setattr(module, name, original)


def hooks_fail_on_one() -> dict[str, Any]:
    return failure_on_one(batch_norm, "running_gap")


def smoothness_fails_on_one() -> dict[str, Any]:
    return failure_on_one(step_replica, "_check_copy")


RUNS = (values, unwatched, other_layers, hooks_fail_on_one, smoothness_fails_on_one)
