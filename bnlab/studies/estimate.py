"""Estimates of the time that runs take, from finished runs like them or from a few training steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bnlab.studies.grid import Run
from bnlab.studies.results import epochs_begun
from bnlab.studies.study import Running, State

if TYPE_CHECKING:
    import torch

    from bnlab.training import Classifier

# from the most to the least alike; a run is compared with the first kind that has results
_KINDS: tuple[tuple[str, ...], ...] = (
    ("experiment", "dataset", "batch_norm", "batch_size", "overrides"),
    ("architecture", "dataset", "batch_norm", "batch_size", "overrides"),
    ("architecture", "dataset", "batch_size", "overrides"),
    ("architecture", "dataset", "overrides"),
)
# what a run takes beside its epochs: starting Python and torch, reading the images, the test
START_S = 8.0

# training images before a part of them becomes the validation set
_IMAGES = {"digits": 646, "mnist": 60_000, "svhn": 73_257, "cifar10": 50_000, "cifar100": 50_000}
_SECONDS = 1.0  # that the steps are timed for
# the diagnostics, the batches and the validation of a ninth of the images, beside the bare steps
_BESIDE = 1.3


class Estimate(NamedTuple):
    """Seconds that a run takes, with the source of that number."""

    seconds: float
    source: str


def from_results(run: Run, results: Iterable[Mapping[str, Any]]) -> Estimate | None:
    """The mean duration of the results most like the run; None where none is alike."""
    known = [(result, seconds) for result in results if (seconds := seconds_of(result)) is not None]
    for kind in _KINDS:
        alike = [seconds for result, seconds in known if all(result.get(name) == run.identity[name] for name in kind)]
        if alike:
            plural = "s" if len(alike) > 1 else ""
            return Estimate(sum(alike) / len(alike), f"as {len(alike)} finished run{plural} like it")
    return None


def seconds_of(result: Mapping[str, Any]) -> float | None:
    """The time that a run took; None for one that failed or was not timed."""
    outcome = result["outcome"]
    if outcome["status"] == "failed" or result.get("seconds_per_epoch") is None:
        return None
    return START_S + float(result["seconds_per_epoch"]) * int(outcome["epochs"])


def shared_out(seconds: Sequence[float], jobs: int) -> float:
    """Seconds until `jobs` at a time have ended all of them."""
    return max(sum(seconds) / jobs, max(seconds, default=0.0))


def time_left(state: State, jobs: int) -> float | None:
    """Seconds until the study's end; None until something is known of every run that is not done.

    A run without results like it is taken to go through all its epochs at the pace of one that is running.
    """
    results = list(state.results.values())
    pace = {_pace_of(running.run): found for running in state.running.values() if (found := _whole(state, running))}
    seconds = []
    for run in [*state.waiting, *(running.run for running in state.running.values())]:
        estimate = from_results(run, results)
        whole = pace.get(_pace_of(run)) if estimate is None else estimate.seconds
        if whole is None:
            return None
        running = state.running.get(run.name)
        seconds.append(whole if running is None else max(0.0, whole - (time.monotonic() - running.since)))
    return shared_out(seconds, jobs)


def _pace_of(run: Run) -> tuple[object, ...]:
    return run.architecture, run.dataset, run.batch_size, run.max_epochs


def _whole(state: State, running: Running) -> float | None:
    """Seconds that a running run would take for all epochs, from those that it has trained since it was started."""
    epochs = epochs_begun(state.folder / running.run.name) - running.epochs_before - 1
    if epochs < 1:
        return None
    training = time.monotonic() - running.since - START_S
    return START_S + max(0.0, training) / epochs * running.run.max_epochs


def training_images(dataset: str, folder: Path, val_fraction: float) -> int:
    """Images that are trained on, known without reading them; `folder` has the train.npz of dataset `npz`."""
    if dataset in _IMAGES:
        images = _IMAGES[dataset]
    else:
        with np.load(folder / "train.npz", allow_pickle=False) as file:
            images = len(file["labels"])
    return round(images * (1 - val_fraction))


def seconds_per_step(model: Classifier, batch_size: int, device: torch.device, threads: int) -> float:
    """Seconds of an optimizer step with a batch, what comes beside it in a run included; trains the net a little."""
    import torch  # takes seconds, and only a dry run needs it
    import torch.nn.functional as F
    from torch.utils.benchmark import Timer

    hparams = model.hparams
    model = model.to(device).train()
    images = torch.randn(batch_size, hparams["in_channels"], *hparams["image_size"], device=device)
    labels = torch.randint(hparams["num_classes"], (batch_size,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    # warms up, waits for the device, and puts the number of threads back
    timer = Timer("step()", globals={"step": step}, num_threads=threads)
    return _BESIDE * float(timer.blocked_autorange(min_run_time=_SECONDS).mean)
