"""Cost of the callbacks in a Lightning run, beside the usual hand-written recipe and wandb.watch.

    python -m benchmarks.overhead [--root FOLDER_WITH_MNIST] [--rounds 7] [--only mlp|cnn] [--logger nothing]

Every contender is the same run (batch 64, images 1x32x32, one epoch, no progress bar, no checkpoints) plus something,
with TensorBoard or, by --logger nothing, a logger that takes values and writes nothing: so TensorBoard's part shows.
All run in turn in every round, and only ratios within a round are compared, so a machine whose speed drifts does no
harm. The null control is the run without anything against itself: what it shows is noise. The clock runs from the start
of the epoch until the last callback has ended it, so what is put off to the end of the epoch counts; what is written
after the epoch (pictures, a table's last lines) does not. With --shares the seconds in the callbacks' hooks are added
up as well, in runs of so many steps: almost without noise, and without the 2 to 3 µs that Lightning needs for each
call, which are counted beside them. Without --root, random images in MNIST's file format stand in for MNIST.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import platform
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn

from benchmarks.train_speed import Contender, Plain, StepClock, compare, lightning
from bnlab import ImageDataModule
from bnlab_callbacks import (
    ActivationMonitor,
    ChartLayout,
    EpochTimer,
    GradientMonitor,
    LayerHeatmap,
    RecordFile,
    TrainingDiagnosis,
)
from bnlab_callbacks.core.hooks import ModuleHook
from tests.helpers.data_files import write_mnist


class TakesValues(Logger):
    """A logger that writes nothing."""

    name = "nothing"
    version = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take them."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Take them."""


LOGGERS: dict[str, Callable[[str], Logger]] = {
    "tensorboard": lambda folder: TensorBoardLogger(folder),
    "nothing": lambda folder: TakesValues(),
}
BASE = "run without callbacks"
SATURATED = 0.05  # distance from 0 and 1 below which the recipe calls an output saturated

MakeCallbacks = Callable[[], list[Callback]]


class EpochClock(StepClock):
    """Seconds from the start of the epoch until this callback, which is the last, is told of its end."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Go on: the epoch's end counts, too."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._start


class HandWritten(Callback):
    """The recipe that people write: a hook on each activation, `.item()` for each value, `add_scalar` for each."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the activations."""
        self._writer: Any = trainer.loggers[0].experiment  # type: ignore[attr-defined]
        self._step = 0
        self._handles = [
            module.register_forward_hook(partial(self._watch, name))
            for name, module in pl_module.named_modules()
            if isinstance(module, nn.ReLU | nn.Sigmoid | nn.Tanh | nn.ELU)
        ]

    def _add(self, tag: str, value: Tensor) -> None:
        self._writer.add_scalar(tag, value.item(), self._step)

    def _watch(self, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        output = output.detach()
        self._add(f"{name}/mean", output.mean())
        self._add(f"{name}/std", output.std())
        self._add(f"{name}/zeros", (output == 0).float().mean())
        self._add(f"{name}/saturated", ((output < SATURATED) | (output > 1 - SATURATED)).float().mean())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Record every gradient, and keep the weights."""
        self._before = {name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()}
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None:
                self._add(f"{name}/grad_mean_abs", parameter.grad.abs().mean())
                self._add(f"{name}/grad_norm", parameter.grad.norm())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Record how far the weights moved."""
        for name, parameter in pl_module.named_parameters():
            self._add(f"{name}/update_norm", (parameter.detach() - self._before[name]).norm())
        self._step += 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


class WandbWatch(Callback):
    """`wandb.watch` of gradients and parameters at every step, offline; a log call each step, or it writes nothing."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a run in the Trainer's folder."""
        import wandb  # type: ignore[import-not-found, unused-ignore]

        self._run: Any = wandb.init(mode="offline", dir=trainer.loggers[0].save_dir)
        self._run.watch(pl_module, log="all", log_freq=1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Log the loss: the histograms go with it."""
        self._run.log({"train_loss": outputs["loss"].item()})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run, beside the clock."""
        self._run.unwatch()
        self._run.finish()


class HookClock:
    """Adds up the seconds in callbacks' hooks and in their hooks on modules; ratios of whole runs drown in noise."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0  # by Lightning, of hooks of its own
        self._inside = False

    @contextlib.contextmanager
    def watching(self, callbacks: Iterable[Callback]) -> Iterator[None]:
        """Measure all hooks of these callbacks, in their classes."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(patch.object(ModuleHook, "__call__", self.measured(ModuleHook.__call__)))
            for kind in {type(callback) for callback in callbacks}:
                for name in dir(kind):
                    if name.startswith("on_") and callable(hook := getattr(kind, name)):
                        stack.enter_context(patch.object(kind, name, self.measured(hook)))
            yield

    def measured(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The same hook, measured."""

        @wraps(hook)
        def call(*arguments: Any) -> Any:
            self.calls += not self._inside and isinstance(arguments[0], Callback)
            return self.timed(hook, *arguments)

        return call

    def timed(self, hook: Callable[..., Any], *arguments: Any) -> Any:
        """Call a hook; one within another counts once."""
        if self._inside:
            return hook(*arguments)
        self._inside, start = True, time.perf_counter()
        try:
            return hook(*arguments)
        finally:
            self.seconds += time.perf_counter() - start
            self._inside = False


class Empty(Callback):
    """Costs what Lightning's own calls cost."""


class Empty2(Empty):
    """Another one; Lightning allows one of a kind."""


class Empty3(Empty):
    """A third."""


class Beginning(Callback):
    """Notes when training began."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note it."""
        self.moment = time.perf_counter()


def share_of_hooks(
    architecture: str, data: ImageDataModule, steps: int, callbacks: list[Callback]
) -> tuple[float, float]:
    """Seconds in the hooks / seconds of the rest, from the start of a run to its end; and calls of hooks a step."""
    clock = HookClock()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), clock.watching(callbacks):
        torch.manual_seed(0)
        trainer = Trainer(
            max_epochs=-1, max_steps=steps, accelerator="cpu", enable_model_summary=False, limit_val_batches=0,
            enable_progress_bar=False, enable_checkpointing=False, logger=TensorBoardLogger(folder),
            callbacks=[begin := Beginning(), *callbacks],
        )  # fmt: skip
        trainer.fit(Plain(architecture, log=True), datamodule=data)
        return clock.seconds / (time.perf_counter() - begin.moment - clock.seconds), clock.calls / steps


def print_shares(architecture: str, data: ImageDataModule, lengths: Sequence[int], rounds: int) -> None:
    """Print what share of a run's time is spent in hooks, by the run's length."""
    rows: dict[str, MakeCallbacks] = {
        "monitors, default interval (50)": monitors,
        "TrainingDiagnosis": lambda: [TrainingDiagnosis(summary=False)],
        "both": lambda: [*monitors(), TrainingDiagnosis(summary=False)],
        "monitors, every step": lambda: monitors(1),
        "both, every step": lambda: [*monitors(1), TrainingDiagnosis(summary=False)],
    }
    print(
        f"\n{architecture.upper()}: seconds in hooks / seconds of the rest, {rounds} rounds; in runs of so many steps"
    )
    print(f"{'':34}" + "".join(f"{steps:>24}" for steps in lengths))
    for name, make in rows.items():
        print(f"{name:34}", end="")
        for steps in lengths:
            runs = [share_of_hooks(architecture, data, steps, make()) for _ in range(rounds)]
            shares = [share for share, _ in runs]
            print(f"{f'{median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})':>24}", end="", flush=True)
        print(f"{runs[0][1]:>10.1f} calls a step")


def monitors(every: int | None = None, budget: float | None = None) -> list[Callback]:
    """The three that `bnlab fit` has, too."""
    return [GradientMonitor(every, budget=budget), ActivationMonitor(every, budget=budget), EpochTimer()]


def contenders(architecture: str, data: ImageDataModule, steps: int, logger: str) -> dict[str, Contender]:
    """Rows of a table."""
    added: dict[str, MakeCallbacks] = {
        BASE: list,
        f"{BASE} again (null control)": list,
        "three callbacks with nothing in their hooks": lambda: [Empty(), Empty2(), Empty3()],
        "monitors, default interval (50)": monitors,
        "monitors, every step": lambda: monitors(1),
        "the same, with file, heatmap and charts": lambda: [*monitors(1), RecordFile(), LayerHeatmap(), ChartLayout()],
        "monitors, every step, budget 1 % each": lambda: monitors(1, budget=0.01),
        "TrainingDiagnosis alone": lambda: [TrainingDiagnosis(summary=False)],
        "TrainingDiagnosis(stop=True) alone": lambda: [TrainingDiagnosis(stop=True, summary=False)],
        "monitors, default interval, and TrainingDiagnosis": lambda: [*monitors(), TrainingDiagnosis(summary=False)],
        "monitors, every step, and TrainingDiagnosis": lambda: [*monitors(1), TrainingDiagnosis(summary=False)],
    }
    if logger == "tensorboard":  # which it needs
        added["hand-written recipe, every step"] = lambda: [HandWritten()]
    if importlib.util.find_spec("wandb"):
        added["wandb.watch(all, log_freq=1), offline"] = lambda: [WandbWatch()]
    return {name: fit(architecture, data, steps, callbacks, logger) for name, callbacks in added.items()}


def fit(architecture: str, data: ImageDataModule, steps: int, callbacks: MakeCallbacks, logger: str) -> Contender:
    """The run that all contenders share, with these callbacks."""
    clock = EpochClock()
    train = lightning(
        lambda: Plain(architecture, log=True),
        data,
        steps,
        callbacks=lambda folder: [*callbacks(), clock],
        logger=LOGGERS[logger],
        enable_progress_bar=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )

    def run() -> float:
        train()  # its own clock stops at the last step
        return clock.seconds

    return run


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder that holds MNIST/raw; random images without it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mlp_steps", type=int, default=400)
    parser.add_argument("--cnn_steps", type=int, default=12)
    parser.add_argument("--only", choices=("mlp", "cnn"))
    parser.add_argument("--logger", choices=LOGGERS, default="tensorboard")
    parser.add_argument("--shares", type=int, nargs="*", default=[], help="lengths of runs to measure shares in")
    parser.add_argument("--rows", default="", help="a regular expression for the rows wanted beside the null control")
    options = parser.parse_args(list(arguments) if arguments is not None else None)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}")
    with tempfile.TemporaryDirectory() as folder:
        if not options.root:
            write_mnist(Path(folder), n_train=60_000, n_test=1_000)
        data = ImageDataModule("mnist", root=options.root or folder, download=False)
        data.setup("fit")
        for architecture, steps in (("mlp", options.mlp_steps), ("cnn", options.cnn_steps)):
            if options.only in (None, architecture):
                rows = contenders(architecture, data, steps, options.logger)
                rows = {name: row for name, row in rows.items() if BASE in name or re.search(options.rows, name)}
                compare(architecture.upper(), BASE, rows, options.rounds, steps)
                print_shares(architecture, data, options.shares, min(options.rounds, 5)) if options.shares else None
    if not importlib.util.find_spec("wandb"):
        print("\nwandb.watch: wandb is not installed")


if __name__ == "__main__":
    main()
