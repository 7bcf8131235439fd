"""Judges of gradients: how steady they are over training, and how large early on."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from bnlab.reports.claims.claim import Evidence, Finding, Verdict, decide, higher
from bnlab.reports.estimates import difference
from bnlab.reports.reading.curves import LayerTable
from bnlab.reports.reading.run import Run
from bnlab.reports.thesis.experiments import norm_words

_STEADIER, _LARGER = 1.25, 2.0  # the smallest factors that count with one seed
_GRADIENT = "grad_mean_abs"


def steadier_gradients(evidence: Evidence, experiment: str) -> Finding | None:
    """Judges how much the gradients' size varies over training: the standard deviation of log10 `grad_mean_abs` over
    the recorded steps up to the last one that both nets reached, mean over layers.

    Supported if batch norm's is smaller: with several seeds by Welch's interval, with one by a factor of 1.25 or more.
    """
    sides = evidence.sides(experiment)
    spreads = _measured(evidence, sides, spread)
    if spreads is None:
        return None
    text = "; ".join(
        f"{norm_words(flag)} {fmean(values):.2f} (n = {len(values)})"
        for flag, values in zip((False, True), spreads, strict=True)
    )
    verdict = larger(spreads[1], spreads[0], _STEADIER)
    return evidence.finding(verdict, f"standard deviation of log10 of the gradients: {text}", sides[0] + sides[1])


def spread(table: LayerTable, last_step: float) -> float | None:
    """Standard deviation (n − 1) of log10 over steps, mean over the layers with three values above 0 or more."""
    kept = table.values[:, table.steps <= last_step]
    found = []
    for values in kept:
        positive = values[np.isfinite(values) & (values > 0)]
        if len(positive) > 2:
            found.append(float(np.std(np.log10(positive), ddof=1)))
    return fmean(found) if found else None


def larger_gradients(evidence: Evidence, smaller: str, larger_one: str) -> Finding | None:
    """Judges the gradients of two batch-normalised nets early in training, by `early_size`.

    Supported if those of `larger_one` are larger: with several seeds by Welch's interval, with one by a factor of 2.
    """
    sides = [evidence.runs(name, True) for name in (smaller, larger_one)]
    sizes = _measured(evidence, sides, early_size)
    if sizes is None:
        return None
    text = ", ".join(
        f"{evidence.architecture}_{name} {fmean(side):.2g} (n = {len(side)})"
        for name, side in zip((smaller, larger_one), sizes, strict=True)
    )
    text = f"mean gradients of the hidden layers early in training, with batch norm: {text}"
    return evidence.finding(larger(sizes[0], sizes[1], _LARGER), text, sides[0] + sides[1])


def early_size(table: LayerTable, last_step: float) -> float | None:
    """Geometric mean of a table's values above 0 over hidden layers and early steps; None without such values.

    Early steps are the first tenth up to `last_step`, before the loss comes near 0. Step 0 is not among them: there
    batch norm's ε = 1e-5 is larger than the variance of tiny weights that it is added to, so their gradients are tiny.
    The last layer is not hidden: no batch norm follows it, so the claim is not about its weights.
    """
    early = table.values[:-1, (table.steps > 0) & (table.steps <= last_step / 10)]
    positive = early[np.isfinite(early) & (early > 0)]
    return float(np.exp(np.log(positive).mean())) if len(positive) else None


def larger(small: Sequence[float], large: Sequence[float], factor: float) -> Verdict:
    """Whether `large` is larger: by Welch's interval of the logarithms with several seeds, else by a factor."""
    if min(len(small), len(large)) > 1 and min(*small, *large) > 0:
        return higher(difference([math.log(value) for value in small], [math.log(value) for value in large]))
    before, after = fmean(small), fmean(large)
    return decide(before < after >= factor * before, after < before >= factor * after)


def _measured(
    evidence: Evidence, sides: Sequence[Sequence[Run]], measure: Callable[[LayerTable, float], float | None]
) -> list[list[float]] | None:
    """A measure of each run's gradients up to the last step that all reached; None if a side has no run with it."""
    found = [[evidence.curves(run).table(_GRADIENT) for run in side] for side in sides]
    tables = [[table for table in side if table is not None] for side in found]
    if not all(tables):
        return None
    last = min(float(table.steps[-1]) for side in tables for table in side)
    values = [[value for table in side if (value := measure(table, last)) is not None] for side in tables]
    return values if all(values) else None
