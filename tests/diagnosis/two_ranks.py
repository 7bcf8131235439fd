"""A diagnosed run under DDP, started once per rank by test_two_ranks.py; writes what each rank found.

Arguments: the output file. Rank and addresses come in the environment, as from a cluster's launcher.
"""

import contextlib
import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from bnlab_callbacks import ActivationMonitor, GradientMonitor, TrainingDiagnosis
from bnlab_callbacks.diagnosis.watching import run_watch
from tests.diagnosis.small_runs import Net, batches, net
from tests.helpers.silent_trainer import trainer_in

RANK = int(os.environ["LOCAL_RANK"])


def shard(bad: int | None) -> DataLoader[Any]:
    """Every second sample; on rank 1 one of step `bad` is NaN."""
    x, y = batches().dataset[:]
    if bad is not None:
        x, y = x.repeat(bad // 16 + 1, 1), y.repeat(bad // 16 + 1)
        x[bad * 16 + 1, 0] = math.nan
    dataset = TensorDataset(x, y)
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, 2, RANK, shuffle=False)
    return DataLoader(dataset, batch_size=8, sampler=sampler)


def broken(*_: Any) -> Any:
    raise RuntimeError("on this rank only")


def diagnose(folder: Path, bad: int | None, scale: float = 1.0, lent: bool = False, **arguments: Any) -> dict[str, Any]:
    torch.manual_seed(0)  # unseeded, some nets lay on both sides of a threshold
    diagnosis = TrainingDiagnosis(folder=str(folder), **arguments)
    module = Net(net(torch.nn.Linear(20, 20), torch.nn.ReLU()))
    for parameter in module.parameters():
        parameter.data *= scale
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False, "max_epochs": 3}
    lenders: list[Callback] = [GradientMonitor(2), ActivationMonitor(3)] if lent else []
    trainer_in(folder, callbacks=[*lenders, diagnosis], **options).fit(module, shard(bad))
    return {
        "findings": [finding.to_dict() for finding in diagnosis.findings],
        "verdict": diagnosis.verdict,
        "steps": module.trainer.global_step,
        "files": sorted(path.name for path in folder.iterdir()) if folder.exists() else [],
    }


class Raises(Callback):
    """An error of the user's in step 17, before it is looked at; on both ranks, as of a check of the loss."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == 17:
            raise ValueError("the user's")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    file = Path(sys.argv[1])
    torch.set_num_threads(1)
    found = {
        "healthy": diagnose(file.with_suffix(".healthy"), None),
        "bad": diagnose(file.with_suffix(".bad"), 7, stop=True),
        "small": diagnose(file.with_suffix(".small"), None, 1e-5),
        "small, lent": diagnose(file.with_suffix(".small_lent"), None, 1e-5, lent=True),
        "bad between looks": diagnose(file.with_suffix(".between"), 22),
        "bad, lent": diagnose(file.with_suffix(".bad_lent"), 7, lent=True, stop=True),
    }
    diagnosis = TrainingDiagnosis(folder=str(file.with_suffix(".raised")))
    with contextlib.suppress(ValueError):
        trainer_in(
            file.parent, callbacks=[diagnosis, Raises()], devices=2, strategy="ddp", use_distributed_sampler=False
        ).fit(Net(net()), shard(17))
    found["raised"] = {"findings": [finding.to_dict() for finding in diagnosis.findings]}
    if RANK == 1:
        run_watch.TaskReader.read = broken  # type: ignore[method-assign]
    found["broken"] = diagnose(file.with_suffix(".broken"), None)
    file.write_text(json.dumps(found))
