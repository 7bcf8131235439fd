"""Judges of what happens during training: how soon it converges, and what the gradients do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bnlab.reports.claims.verdict import Evidence, Finding, Judge, Verdict
from bnlab.reports.curves import LayerTable
from bnlab.reports.names import dataset_title, norm_words
from bnlab.reports.runs import Run
from bnlab.reports.statistics import difference, mean

REACHED = 0.99  # of the best validation accuracy that both nets reach
_FEWER_EPOCHS, _SHARE = 3, 2 / 3  # what counts with one seed
_STEADIER, _LARGER = 1.25, 2.0  # factors that count with one seed
_GRADIENT = "grad_mean_abs"


class Net(NamedTuple):
    """One of two nets that are compared."""

    experiment: str
    batch_norm: bool

    def words(self, architecture: str) -> str:
        """`mlp_relu batch norm`."""
        return f"{architecture}_{self.experiment} {norm_words(self.batch_norm)}"


def epochs_to(accuracies: Sequence[float], target: float) -> int | None:
    """The first epoch, counted from 1, that reaches an accuracy; None if none does.

    >>> epochs_to([0.5, 0.8, 0.7, 0.9], 0.8)
    2
    """
    return next((epoch for epoch, value in enumerate(accuracies, 1) if value >= target), None)


def converges_sooner(slow: Net, fast: Net) -> Judge:
    """Judges the epochs until the validation accuracy first reaches `REACHED` of the best that both nets reach (the
    lower of their mean best accuracies).

    With several seeds on both sides by Welch's interval; with one, a net is sooner if it needs at most two thirds of
    the other's epochs, and at least three epochs less.
    """

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        sides = [evidence.runs(architecture, net.experiment, dataset, net.batch_norm) for net in (slow, fast)]
        series = [[evidence.curves(run).by_epoch("val_acc")[1] for run in side] for side in sides]
        series = [[values for values in side if values] for side in series]
        if not all(series):
            return None
        target = REACHED * min(mean([max(values) for values in side]) for side in series)
        epochs = [[epochs_to(values, target) for values in side] for side in series]
        words = [_epoch_words(net.words(architecture), found) for net, found in zip((slow, fast), epochs, strict=True)]
        text = f"epochs to {100 * target:.2f} % validation accuracy: {', '.join(words)}"
        trained = [[len(values) for values in side] for side in series]
        return Finding(dataset_title(dataset), sooner(epochs, trained), text, tuple(sides[0] + sides[1]))

    return judge


def sooner(epochs: Sequence[Sequence[int | None]], trained: Sequence[Sequence[int]]) -> Verdict:
    """Whether the second net's epochs are fewer than the first's, by the rule of `fewer`.

    A run that never got there needs more than the epochs that it was trained for (`trained`); these stand for it, so
    they can only speak for the other net.
    """
    known = [
        [float(most if epoch is None else epoch) for epoch, most in zip(side, ends, strict=True)]
        for side, ends in zip(epochs, trained, strict=True)
    ]
    verdict = fewer(known[0], known[1])
    at_least_so_many = [None in side for side in epochs]
    if (verdict == "supported" and at_least_so_many[1]) or (verdict == "contradicted" and at_least_so_many[0]):
        return "cannot tell"
    return verdict


def fewer(many: Sequence[float], few: Sequence[float]) -> Verdict:
    """Whether `few` are fewer epochs than `many`, after the rule of `converges_sooner`."""
    if min(len(many), len(few)) > 1:
        gain = difference(many, few)
        return "cannot tell" if gain.low <= 0 <= gain.high else "supported" if gain.value < 0 else "contradicted"
    before, after = mean(many), mean(few)
    if abs(before - after) < _FEWER_EPOCHS or min(before, after) > _SHARE * max(before, after):
        return "cannot tell"
    return "supported" if after < before else "contradicted"


def _epoch_words(net: str, epochs: Sequence[int | None]) -> str:
    return f"{net} {', '.join('never' if epoch is None else str(epoch) for epoch in epochs)} (n = {len(epochs)})"


def steadier_gradients(experiment: str) -> Judge:
    """Judges how much the gradients' size changes over training: the standard deviation of log10 `grad_mean_abs` over
    the recorded steps, mean over layers, up to the last step that both nets reached.

    Supported if batch norm's is smaller: with several seeds by Welch's interval, with one by a factor of 1.25 or more.
    """

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        sides = [evidence.runs(architecture, experiment, dataset, flag) for flag in (False, True)]
        tables = [_tables(evidence, side) for side in sides]
        if not all(tables):
            return None
        last = min(float(table.steps[-1]) for side in tables for table in side)
        spreads = [[value for table in side if (value := spread(table, last)) is not None] for side in tables]
        if not all(spreads):
            return None
        text = "; ".join(
            f"{norm_words(flag)} {mean(values):.2f} (n = {len(values)})"
            for flag, values in zip((False, True), spreads, strict=True)
        )
        verdict = larger(spreads[1], spreads[0], _STEADIER)
        text = f"standard deviation of log10 of the gradients: {text}"
        return Finding(dataset_title(dataset), verdict, text, (*sides[0], *sides[1]))

    return judge


def spread(table: LayerTable, last_step: float) -> float | None:
    """Standard deviation (n − 1) of log10 over steps, mean over the layers that have three values above 0 or more."""
    kept = table.values[:, table.steps <= last_step]
    found = []
    for values in kept:
        positive = values[np.isfinite(values) & (values > 0)]
        if len(positive) > 2:
            found.append(float(np.std(np.log10(positive), ddof=1)))
    return mean(found) if found else None


def larger_gradients(smaller: str, larger_one: str) -> Judge:
    """Judges the gradients of two batch-normalised nets early in training, by `early_size`.

    Supported if `larger_one` has the larger ones: with several seeds by Welch's interval, with one by a factor of 2.
    """

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        sides = [evidence.runs(architecture, name, dataset, True) for name in (smaller, larger_one)]
        tables = [_tables(evidence, side) for side in sides]
        if not all(tables):
            return None
        last = min(float(table.steps[-1]) for side in tables for table in side)
        sizes = [[value for table in side if (value := early_size(table, last)) is not None] for side in tables]
        if not all(sizes):
            return None
        text = ", ".join(
            f"{architecture}_{name} {mean(side):.2g} (n = {len(side)})"
            for name, side in zip((smaller, larger_one), sizes, strict=True)
        )
        text = f"mean gradients of the hidden layers early in training, with batch norm: {text}"
        return Finding(dataset_title(dataset), larger(sizes[0], sizes[1], _LARGER), text, (*sides[0], *sides[1]))

    return judge


def early_size(table: LayerTable, last_step: float) -> float | None:
    """Geometric mean of a table's values above 0 over hidden layers and early steps; None without any.

    Early is the first tenth of the steps up to `last_step`, before the loss comes near 0, but without step 0, where
    tiny weights have tiny gradients: batch norm's ε = 1e-5 is then larger than the variance that it is added to. The
    last layer is left out: no batch norm follows it, so the claim is not about its weights.
    """
    early = table.values[:-1, (table.steps > 0) & (table.steps <= last_step / 10)]
    positive = early[np.isfinite(early) & (early > 0)]
    return float(np.exp(np.log(positive).mean())) if len(positive) else None


def larger(small: Sequence[float], large: Sequence[float], factor: float) -> Verdict:
    """Whether `large` is larger: by Welch's interval of the logarithms with several seeds, else by a factor."""
    if min(len(small), len(large)) > 1 and min(*small, *large) > 0:
        gain = difference([math.log(value) for value in small], [math.log(value) for value in large])
        return "cannot tell" if gain.low <= 0 <= gain.high else "supported" if gain.value > 0 else "contradicted"
    before, after = mean(small), mean(large)
    if after >= factor * before and after > before:
        return "supported"
    return "contradicted" if before >= factor * after and before > after else "cannot tell"


def _tables(evidence: Evidence, runs: Sequence[Run]) -> list[LayerTable]:
    return [table for run in runs if (table := evidence.curves(run).table(_GRADIENT)) is not None]
