"""One run of the fault matrix: what it is, how it is trained, how it ended, and what the diagnosis said."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import time
import traceback
import warnings
from collections.abc import Sequence, Sized
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.fault_matrix.data import read
from benchmarks.fault_matrix.faults import ALL_NETS, FAULTS, IMAGE_NETS
from benchmarks.fault_matrix.healthy import HEALTHY
from benchmarks.fault_matrix.more_nets import MORE
from benchmarks.fault_matrix.nets import SLOW
from benchmarks.fault_matrix.setup import OPTIMIZERS, Setup
from benchmarks.fault_matrix.unseen_nets import UNSEEN

STEPS = 350  # rules that ask for patience wait for 300
TUNE_SEEDS = (0, 1)
CONTROL, WARMED_UP = "control", "warm-up"  # a warm-up is had with every optimizer


class Task(NamedTuple):
    """A run: `fault` is that of a table, a healthy kind, or the control."""

    fault: str
    net: str
    optimizer: str
    data: str
    seed: int

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.fault == CONTROL or self.fault in HEALTHY

    @property
    def part(self) -> str:
        """`tune`: thresholds may be chosen on it; `held_out`, `unseen` (nets): they are reported on it."""
        if self.net in UNSEEN:
            return "unseen"
        return "tune" if self.seed in TUNE_SEEDS else "held_out"

    @property
    def control(self) -> Task:
        """The sound run to compare with."""
        return self._replace(fault=CONTROL)

    def __str__(self) -> str:
        return "/".join(map(str, self))


def tasks(seeds: int, healthy_seeds: int, data: Sequence[str]) -> list[Task]:
    """The grid: controls of all nets × optimizers × data × `healthy_seeds`, slow starters, kinds × nets × `seeds`.

    A fault or a healthy kind meets every net that can have it with every seed; which optimizer and data go with them
    alternates.
    """
    nets = ALL_NETS | SLOW
    grid = [
        Task(CONTROL, net, optimizer, name, seed)
        for net in (*IMAGE_NETS, *SLOW, *MORE)
        for optimizer in OPTIMIZERS
        for name in nets[net].data or data
        for seed in range(healthy_seeds)
    ]
    kinds = [(k, *item) for table in (FAULTS, HEALTHY) for k, item in enumerate(table.items())]
    for seed in range(seeds):
        for n, (net, spec) in enumerate(ALL_NETS.items()):
            names = spec.data or data
            for k, title, kind in kinds:
                turn = k + n + seed
                if title == WARMED_UP and net in kind.nets:
                    grid += [
                        Task(title, net, OPTIMIZERS[o], names[(n + o + seed) % len(names)], seed) for o in range(3)
                    ]
                elif net in kind.nets:
                    optimizer = kind.optimizers[turn % len(kind.optimizers)]
                    grid.append(Task(title, net, optimizer, names[(turn + turn // 6) % len(names)], seed))
    return sorted(grid, key=lambda task: (task.part != "tune", task.seed, not task.healthy))


class Batches(Dataset[tuple[Tensor, Tensor]], Sized):
    """The batches of a whole run, one item each, in an order of its seed."""

    def __init__(self, run: Setup, images: Tensor, labels: Tensor, seed: int) -> None:
        self.run, self.images, self.labels = run, images, labels
        generator = torch.Generator().manual_seed(seed)
        needed = STEPS * run.batch_size
        epochs = math.ceil(needed / len(labels))
        self.order = torch.cat([torch.randperm(len(labels), generator=generator) for _ in range(epochs)])[:needed]

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        chosen = self.order[step * self.run.batch_size :][: self.run.batch_size]
        images, labels = self.images[chosen], self.labels[chosen]
        return (images, labels) if self.run.batch_fault is None else self.run.batch_fault(step, images, labels)


class Module(LightningModule):
    """Cross entropy and one of three optimizers."""

    def __init__(self, run: Setup, optimizer: str) -> None:
        super().__init__()
        self.run, self.optimizer_name = run, optimizer
        self.net = run.net
        if run.spare:
            self.spare = nn.Linear(16, 16)
        self.losses: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        inputs, targets = batch
        loss = self.run.loss(self.net(inputs), targets)
        self.losses.append(loss.detach().float())
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer, and where it is asked for a linear warm-up."""
        left_out = {id(p) for name in self.run.left_out for p in self.net.get_submodule(name).parameters()}
        parameters = [parameter for parameter in self.parameters() if id(parameter) not in left_out]
        optimizer: torch.optim.Optimizer
        if self.optimizer_name == "sgd":
            optimizer = torch.optim.SGD(parameters, self.run.lr, momentum=0.9, nesterov=True)
        else:
            kind = torch.optim.Adam if self.optimizer_name == "adam" else torch.optim.AdamW
            optimizer = kind(parameters, self.run.lr, eps=self.run.epsilon)
        if not self.run.warm_up:
            return optimizer
        factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self.run.warm_up))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}


def set_up(task: Task, side: int) -> Setup:
    """The run with what its kind changes."""
    spec = (ALL_NETS | SLOW)[task.net]
    torch.manual_seed(task.seed)
    run = Setup(task.net, spec, spec.build(side), spec.lr[task.optimizer], side)
    if task.fault != CONTROL:
        (FAULTS | HEALTHY)[task.fault].inject(run)
    return run


def perform(task: Task, root: str, diagnose: bool) -> dict[str, Any]:
    """Train, and return what there is to know of the run; an error of the diagnosis is a result, too."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("bnlab_callbacks").setLevel(logging.ERROR)
    begin = time.process_time()
    result: dict[str, Any] = {**task._asdict(), "part": task.part}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            result |= _train(task, root, diagnose)
    except Exception:  # noqa: BLE001 - the other runs go on, and the error is shown in the table
        result["error"] = traceback.format_exc(limit=-6)
    return result | {"seconds": round(time.process_time() - begin, 2)}


def _train(task: Task, root: str, diagnose: bool) -> dict[str, Any]:
    data = read(task.data, root)
    run = set_up(task, data.images.shape[-1])
    mean, std = (data.images.mean(), data.images.std()) if run.standardised else (torch.tensor(0.0), torch.tensor(1.0))
    inputs, targets = (data.images - mean) / std, run.aim.targets(data.labels)
    held_inputs, held_targets = (data.held_images - mean) / std, run.aim.targets(data.held_labels)
    if run.targets is not None:
        targets, held_targets = run.targets(targets), run.targets(held_targets)
    if run.prepare is not None:
        run.prepare(inputs, targets)
    module = Module(run, task.optimizer)
    callbacks: list[Callback] = []
    if diagnose:
        from bnlab_callbacks import TrainingDiagnosis

        callbacks = [TrainingDiagnosis()]
    options: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, "logger": False} | run.trainer
    options["callbacks"] = [*callbacks, *options.get("callbacks", ())]
    for name in ("checkpointing", "progress_bar", "model_summary"):
        options[f"enable_{name}"] = False
    trainer = Trainer(**options)
    trainer.fit(module, DataLoader(Batches(run, inputs, targets, task.seed), batch_size=None))
    module.float().eval()
    with torch.no_grad():
        score = run.aim.score(module.net(held_inputs), held_targets)
    losses = torch.stack(module.losses)
    finite = bool(losses.isfinite().all()) and all(bool(p.isfinite().all()) for p in module.parameters())
    return {
        "score": round(float(score.nan_to_num(-1.0).clamp(-1.0)), 4),
        "finite": finite,
        "losses": [_number(losses[step]) for step in (0, 10, 50, 100, 200, STEPS - 1)],
        "exploded": _exploded(losses, run.aim.guess(targets)),
        "layers": run.layers,
        "findings": [_finding(found) for callback in callbacks for found in cast(Any, callback).findings],
    }


def _exploded(losses: Tensor, guess: float) -> int | None:
    """The first step whose loss is not finite, or above 50 times that of guessing; sound runs begin at 11 at most."""
    steps = (~(losses <= 50 * guess)).nonzero()
    return int(steps[0]) if len(steps) else None


def _number(value: Tensor) -> float | None:
    return float(f"{float(value):.4g}") if value.isfinite() else None


def _finding(found: Any) -> dict[str, Any]:
    names = ("name", "severity", "layer", "since", "noticed", "ended", "evidence")
    return {name: getattr(found, name) for name in names}
