"""Judges of what changes with the batch size, and of how one gain compares with another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bnlab.reports.accuracy import accuracy_gain
from bnlab.reports.claims.accuracies import Side, gain_words, higher
from bnlab.reports.claims.verdict import Evidence, Finding, Judge, Verdict
from bnlab.reports.names import dataset_title, norm_words
from bnlab.reports.runs import Run
from bnlab.reports.statistics import Estimate, slope
from bnlab.reports.times import TimePair, baseline_sizes, compare_times


def sign_of(trend: Estimate | None, rising: bool) -> Verdict:
    """Supported if the slope's whole interval has the sign, contradicted if it has the other; less than three points
    have no interval.
    """
    if trend is None or trend.low <= 0 <= trend.high:
        return "cannot tell"
    return "supported" if (trend.value > 0) == rising else "contradicted"


def accuracy_trend(sides: Sequence[bool], rising: bool) -> Judge:
    """Judges test accuracy of the baseline over log2 of the batch size: the slope of a straight line through all runs,
    with its t-interval.

    Args:
        sides: batch norm off, on or both; with both, one that contradicts outweighs, and both must support.
        rising: whether the claim is that accuracy grows with the batch.
    """

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        texts, verdicts, used = [], [], []
        for flag in sides:
            runs = [
                run
                for size in baseline_sizes(evidence.collection, architecture)
                for run in Side("relu", flag, size).runs(evidence, architecture, dataset)
            ]
            if len({run.batch_size for run in runs}) < 2:
                return None
            trend = slope([math.log2(run.batch_size) for run in runs], [100 * (run.test_acc or 0.0) for run in runs])
            verdicts.append(sign_of(trend, rising))
            texts.append(f"{norm_words(flag)}: {_trend_words(trend)} of {_points(runs)}")
            used += runs
        return Finding(dataset_title(dataset), _all(verdicts), "; ".join(texts), tuple(used))

    return judge


def _trend_words(trend: Estimate | None, unit: str = "points") -> str:
    if trend is None:
        return "too few runs for a slope"
    return f"{trend.value:+.2f} {unit} for each doubling, 95 % interval {trend.low:+.2f} to {trend.high:+.2f},"


def _points(runs: Sequence[Run]) -> str:
    sizes = sorted({run.batch_size for run in runs})
    return f"{len(runs)} runs with batches of {sizes[0]} to {sizes[-1]}"


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if set(verdicts) == {"supported"} else "cannot tell"


def better_at_sizes(below: float = math.inf) -> Judge:
    """Judges whether batch norm has the higher test accuracy at every batch size smaller than `below`.

    Supported if it is higher beyond the interval at most sizes and lower at none; contradicted if it is lower beyond
    the interval at one; two sizes are needed.
    """

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        texts, verdicts, used = [], [], []
        for size in baseline_sizes(evidence.collection, architecture):
            sides = [Side("relu", flag, size).runs(evidence, architecture, dataset) for flag in (False, True)]
            gain = accuracy_gain(*sides)
            if gain is None or size >= below:
                continue
            verdicts.append(higher(gain))
            texts.append(f"batch {size}: {gain_words(gain)}")
            used += sides[0] + sides[1]
        if len(verdicts) < 2:
            return None
        verdict: Verdict = "cannot tell"
        if "contradicted" in verdicts:
            verdict = "contradicted"
        elif verdicts.count("supported") > len(verdicts) / 2:
            verdict = "supported"
        return Finding(dataset_title(dataset), verdict, "; ".join(texts), tuple(used))

    return judge


def overhead_trend(rising: bool) -> Judge:
    """Judges what batch norm adds to an epoch's time, in percent of it, over log2 of the batch size, by the slope's
    t-interval. The times of one size are means over its runs, a point for each size, so three sizes are needed.
    """

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        sizes = baseline_sizes(evidence.collection, architecture)
        pairs = [compare_times(evidence.collection, architecture, size, dataset) for size in sizes]
        known = [pair for pair in pairs if pair.overhead is not None]
        if len(known) < 2:
            return None
        trend = slope([math.log2(pair.batch_size) for pair in known], [100 * (pair.overhead or 0.0) for pair in known])
        runs = [
            run
            for pair in known
            for flag in (False, True)
            for run in evidence.runs(architecture, "relu", dataset, flag, pair.batch_size)
        ]
        shares = ", ".join(_overhead_words(pair) for pair in known)
        text = f"{_trend_words(trend, 'percentage points')} overhead by batch size: {shares}"
        return Finding(dataset_title(dataset), sign_of(trend, rising), text, tuple(runs))

    return judge


def _overhead_words(pair: TimePair) -> str:
    return f"{pair.batch_size}: {100 * (pair.overhead or 0.0):.0f} %"


def smaller_gain(experiment: str, than: str) -> Judge:
    """Judges whether batch norm's gain in test accuracy is smaller in one experiment than in another.

    The difference of the two gains must lie beyond its interval, for which the two gains' are taken as independent:
    √(a² + b²).
    """

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        gains, used = [], []
        for name in (than, experiment):
            sides = [Side(name, flag).runs(evidence, architecture, dataset) for flag in (False, True)]
            gain = accuracy_gain(*sides)
            if gain is None:
                return None
            gains.append(gain)
            used += sides[0] + sides[1]
        text = "; ".join(
            f"{architecture}_{name}: {gain_words(gain)}" for name, gain in zip((than, experiment), gains, strict=True)
        )
        return Finding(dataset_title(dataset), _smaller(*gains), text, tuple(used))

    return judge


def _smaller(base: Estimate, other: Estimate) -> Verdict:
    if base.half_width is None or other.half_width is None:
        return "cannot tell"
    change, half = other.value - base.value, math.hypot(base.half_width, other.half_width)
    if abs(change) <= half:
        return "cannot tell"
    return "supported" if change < 0 else "contradicted"
