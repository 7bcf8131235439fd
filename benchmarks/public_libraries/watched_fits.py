"""A library's fits with and without the callbacks: every `Trainer.fit` below a call, however deep it hides."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.public_libraries.rows import Row

VARIABLE = "BNLAB_CALLBACKS"
CALLBACKS = "GradientMonitor,ActivationMonitor,EpochTimer,TrainingDiagnosis"
_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


@dataclass(eq=False)
class Fit:
    """What one call of `Trainer.fit` left."""

    seconds: float = 0.0  # CPU time of the process after the first batch, which pays for what is made once
    losses: list[float] = field(default_factory=list)  # what `training_step` returned, batch by batch
    steps: int = 0
    weights: str = ""  # digest of the module's state
    random: str = ""  # digest of the random states afterwards
    callbacks: list[Any] = field(default_factory=list)
    error: str | None = None

    @property
    def bits(self) -> tuple[str, str]:
        """Weights and random states."""
        return self.weights, self.random


def both_ways(library: str, version: str, name: str, train: Callable[[], object], verdicts: bool) -> list[Row]:
    """A row for each fit that `train` makes; it is called without the callbacks (not if `verdicts` only) and with them.

    Where that leaves other bits, it is called without them once more, which tells whether the library's own training is
    the same twice.
    """
    plain, watched = [] if verdicts else _fits(train, ""), _fits(train, CALLBACKS)
    if not watched:
        return [Row(library, version, name, error="no fit was made")]
    if verdicts:
        return [_filled(Row(library, version, _label(name, watched, fit)), fit) for fit in watched]
    plain += [Fit(error="not made without the callbacks") for _ in watched[len(plain) :]]
    same = all(fit.bits == other.bits for fit, other in zip(watched, plain, strict=False))
    again = plain if same else _fits(train, "")
    rows = []
    for number, fit in enumerate(watched):
        row = _filled(Row(library, version, _label(name, watched, fit)), fit)
        row.compared, row.repeatable = True, number < len(again) and again[number].bits == plain[number].bits
        row.same_weights, row.same_random = fit.weights == plain[number].weights, fit.random == plain[number].random
        row.seconds_without, row.error = round(plain[number].seconds, 2), row.error or plain[number].error
        rows.append(row)
    return rows


def _label(name: str, fits: list[Fit], fit: Fit) -> str:
    return name if len(fits) == 1 else f"{name} {fits.index(fit) + 1}"


def _filled(row: Row, fit: Fit) -> Row:
    tenth = max(1, len(fit.losses) // 10)
    if fit.losses:
        row.first_loss, row.last_loss = np.mean(fit.losses[:tenth]).item(), np.mean(fit.losses[-tenth:]).item()
    row.steps = fit.steps
    row.seconds_with, row.error = round(fit.seconds, 2), fit.error
    diagnosis = next((one for one in fit.callbacks if type(one).__name__ == "TrainingDiagnosis"), None)
    if diagnosis is None:
        row.error = row.error or "the Trainer did not take the callbacks: is bnlab-callbacks installed?"
    else:
        row.verdict, row.not_checked = diagnosis.verdict, dict(diagnosis.not_checked)
        row.findings = [finding.to_dict() for finding in diagnosis.findings]
    return row


def _fits(train: Callable[[], object], callbacks: str) -> list[Fit]:
    os.environ[VARIABLE] = callbacks
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with recorded() as fits:
        try:
            train()
        except Exception as error:  # noqa: BLE001 - whatever a library does, the others are run, and the row names it
            fits.append(fits.pop() if fits else Fit())
            fits[-1].error = f"{type(error).__name__}: {error}"[:300]
    return fits


@contextmanager
def recorded() -> Iterator[list[Fit]]:
    """Records every `Trainer.fit`, of either of Lightning's packages as far as they are imported."""
    fits: list[Fit] = []
    packages = [sys.modules[name] for name in _PACKAGES if name in sys.modules]
    originals = [package.Trainer.fit for package in packages]
    for package, original in zip(packages, originals, strict=True):
        package.Trainer.fit = _recording(original, _losses_of(package.Callback), fits)
    try:
        yield fits
    finally:
        for package, original in zip(packages, originals, strict=True):
            package.Trainer.fit = original


def _losses_of(base: type) -> type:
    """A callback of that Lightning package, which keeps what `training_step` returns, and the moment of the first."""

    class Losses(base):
        def __init__(self) -> None:
            self.values: list[float] = []
            self.begin: float | None = None

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.begin is None:
                self.begin = time.process_time()
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if isinstance(loss, torch.Tensor):
                self.values.append(loss.detach().float().mean().item())

    return Losses


def _recording(original: Callable[..., None], losses: type, fits: list[Fit]) -> Callable[..., None]:
    @wraps(original)
    def fit(trainer: Any, model: nn.Module, *arguments: Any, **named: Any) -> None:
        one, tap = Fit(), losses()
        fits.append(one)
        trainer.callbacks.append(tap)
        try:
            original(trainer, model, *arguments, **named)
        finally:
            one.seconds = 0.0 if tap.begin is None else time.process_time() - tap.begin
            one.losses, one.steps, one.callbacks = tap.values, trainer.global_step, list(trainer.callbacks)
            one.weights, one.random = digest_of(model), _digest_of_random_states()

    return fit


def digest_of(module: nn.Module) -> str:
    """Of all tensors in a module's state, by name, bit for bit."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest_of_random_states() -> str:
    digest = hashlib.sha256(torch.get_rng_state().numpy())
    digest.update(repr((random.getstate(), np.random.get_state())).encode())
    return digest.hexdigest()
