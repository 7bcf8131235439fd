"""Cost of the callbacks in steps that record nothing: calls of hooks by Lightning, and hooks on modules.

    OMP_NUM_THREADS=1 python -m benchmarks.idle_steps [--rounds 7]

Beside a net so small that its step is nearly all Lightning's own. Each contender's quiet quartile of 1,300 steps, less
that of the run without callbacks just before it in the same round; medians over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from statistics import median, quantiles
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor, TrainingDiagnosis
from tests.callbacks.small_runs import Module, loader, trainer

STEPS, NEVER = 1500, 10**6


class StepTimes(Callback):
    """When each step began."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Note it."""
        self.moments.append(time.perf_counter())


class HooksOnModules(Callback):
    """A hook on each module that returns at once."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put them on."""
        for module in pl_module.net:  # type: ignore[union-attr]
            module.register_forward_hook(lambda module, args, output: None)


def net() -> nn.Sequential:
    """Seven modules, three of them activations."""
    inner = [layer for _ in range(3) for layer in (nn.Linear(6, 6), nn.Sigmoid())]
    return nn.Sequential(*inner, nn.Linear(6, 3))


def monitors() -> list[Callback]:
    """The three that `bnlab fit` has, too; they record the first step."""
    return [GradientMonitor(NEVER), ActivationMonitor(NEVER), EpochTimer()]


def diagnosis() -> list[Callback]:
    """It looks at the first step."""
    return [TrainingDiagnosis(1, NEVER, summary=False)]


ROWS: dict[str, Callable[[], list[Callback]]] = {
    "null control": list,
    "an empty callback, 6 hooks": lambda: [Callback()],
    "three empty callbacks": lambda: [Callback(), Callback(), Callback()],
    "a hook on each of 7 modules": lambda: [HooksOnModules()],
    "monitors": monitors,
    "TrainingDiagnosis": diagnosis,
    "both": lambda: [*monitors(), *diagnosis()],
}


def step_us(callbacks: list[Callback]) -> float:
    """Microseconds of a step: the lower quartile."""
    torch.manual_seed(0)
    clock = StepTimes()
    with contextlib.redirect_stdout(io.StringIO()):
        run = trainer(clock, *callbacks, log_every_n_steps=NEVER)
        run.fit(Module(net()), loader(4 * STEPS, batch_size=4))
    steps = [1e6 * (end - start) for start, end in zip(clock.moments[200:], clock.moments[201:], strict=False)]
    return quantiles(steps, n=4)[0]


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args(list(arguments) if arguments is not None else None).rounds
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}; microseconds a step")
    for name, make in ROWS.items():
        more = []
        for _ in range(rounds):
            base = step_us([])
            more.append(step_us(make()) - base)
        print(f"{name:32} +{median(more):6.1f} ({min(more):.1f} to {max(more):.1f}) of {base:.0f}", flush=True)


if __name__ == "__main__":
    main()
