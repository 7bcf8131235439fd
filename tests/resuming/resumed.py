"""Runs that are left in every way, and what of them must be the same when they went on."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from bnlab.cli.commands import BnlabCLI
from bnlab.cli.main import main
from bnlab_callbacks import read_records
from tests.helpers.command_line import CONFIGS, ON_CPU, QUIET, read_yaml

FIT = ("fit", "--config", str(CONFIGS / "mlp_dropout.yaml"), *ON_CPU, *QUIET)

SHORT = ("--trainer.max_epochs", "2")

# dropout and batch norm, a learning rate that falls and every step recorded: 4 epochs of 9 steps
WATCHED = (
    *("--model.batch_norm", "true", "--model.lr_patience", "1", "--trainer.max_epochs", "4"),
    *("--gradients.every_n_steps", "1", "--activations.every_n_steps", "3", "--trainer.log_every_n_steps", "2"),
    *("--heatmaps.quantities", '["grad_rms"]'),  # drawing takes longer than training here
)

_NOT_COMPARED = (
    "dirpath",
    "_path",
    "epoch_seconds",
    "seconds_so_far",
    ".files.",
    "time/",
    "diagnostics/",
    "EpochTimer",
)


class Snapshots(Callback):
    """Copies the run's folder at some batch ends: exactly what a SIGKILL would leave then.

    Args:
        run: the run's folder.
        target: where the copies go, each named after the batches that were done.
        batches: after which batches, counted through all epochs; all for None.
    """

    def __init__(self, run: Path, target: Path, batches: set[int] | None = None) -> None:
        self.run = run
        self.target = target
        self.batches = batches
        self.seen = 0

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.seen += 1
        if self.batches is None or self.seen in self.batches:
            shutil.copytree(self.run, self.target / f"{self.seen}")


class Happening(Callback):
    """Does something once, in the middle of a training step, or at a validation's first batch.

    Args:
        what: is called.
        step: optimizer steps that are done by then.
        validation: whether it happens in validation.
    """

    def __init__(self, what: Callable[[], None], step: int, validation: bool = False) -> None:
        self.what = what
        self.step = step
        self.validation = validation

    def _happen(self) -> None:
        self.step = -1
        self.what()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not self.validation and trainer.global_step == self.step:
            self._happen()

    def on_validation_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        if self.validation and trainer.global_step == self.step and not trainer.sanity_checking:
            self._happen()


@contextmanager
def also(callback: Callback) -> Iterator[None]:
    """Add a callback to every Trainer that trains, without a flag that the run's config would keep."""
    fit = BnlabCLI.fit

    def with_callback(cli: BnlabCLI, **arguments: Any) -> None:
        cli.trainer.callbacks.append(callback)  # type: ignore[attr-defined]
        fit(cli, **arguments)

    BnlabCLI.fit = with_callback  # type: ignore[method-assign]
    try:
        yield
    finally:
        BnlabCLI.fit = fit  # type: ignore[method-assign]


def snapshots(run: Path, target: Path, *words: str, batches: set[int] | None = None) -> list[Path]:
    """An undisturbed run in `run`, and copies of its folder on the way, in their order."""
    with also(Snapshots(run, target, batches)):
        main([*FIT, *words, "--run_folder", str(run)])
    return sorted((path for path in target.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def broken_off(*words: str) -> None:
    """A run of two epochs that an exception ends in the second, after its first checkpoint."""

    def fail() -> None:
        raise RuntimeError("broken off")

    with also(Happening(fail, 12)), pytest.raises(RuntimeError, match="broken off"):
        main([*FIT, *SHORT, *words])


def tree(folder: Path) -> dict[str, bytes]:
    """All files in a folder, with what is in them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def go_on(run: Path, *words: str) -> None:
    main([*FIT, *words, "--run_folder", str(run), "--resume"])


def assert_same_run(found: Path, expected: Path) -> None:
    """All that training left is the same, bit for bit, but for times."""
    assert events(found) == events(expected)
    assert rows(found) == rows(expected)
    assert dead_units(found) == dead_units(expected)
    was, now = (read_yaml(folder / "run.yaml") for folder in (expected, found))
    assert [repr(now[name]) for name in ("outcome", "val_acc", "train_loss")] == [
        repr(was[name]) for name in ("outcome", "val_acc", "train_loss")
    ]
    assert checkpoint(found) == checkpoint(expected)


def events(folder: Path) -> Counter[tuple[str, int, str]]:
    """Every scalar in the event files, each as often as it is there."""
    found: Counter[tuple[str, int, str]] = Counter()
    for path in folder.glob("events*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[value.tag, event.step, _timeless(value.tag, value.simple_value)] += 1
    assert found
    return found


def rows(folder: Path) -> Counter[tuple[object, ...]]:
    """Every row in the table of records, each as often as it is there."""
    (path,) = folder.glob("records.*")
    found = Counter((*row[:2], *row[3:5], _timeless(row.quantity, row.value)) for row in read_records(path))
    assert found
    return found


def _timeless(tag: str, value: float) -> str:
    return "" if tag.startswith(("time/", "diagnostics/")) else value.hex()


def dead_units(folder: Path) -> list[list[str]]:
    with (folder / "dead_units.csv").open(newline="") as file:
        return list(csv.reader(file))


def checkpoint(folder: Path) -> dict[str, object]:
    """Everything in the last checkpoint, flat; tensors as their type and bytes."""
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    found = dict(_leaves(content, ""))
    assert sum(isinstance(value, tuple) for value in found.values()) > 20
    return {name: value for name, value in found.items() if not any(part in name for part in _NOT_COMPARED)}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}.{index}")
    elif isinstance(value, torch.Tensor):
        yield name, (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    else:
        yield name, value.hex() if isinstance(value, float) else value
