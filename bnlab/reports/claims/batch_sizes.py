"""Judges over batch sizes: trends of accuracy and of batch norm's overhead, and batch norm's gain at each size."""

import math
from collections.abc import Sequence

from bnlab.reports.claims.accuracies import gain_of, gain_words, tested
from bnlab.reports.claims.claim import Evidence, Finding, Verdict, all_of, decide, higher
from bnlab.reports.estimates import Estimate, compare_times, slope
from bnlab.reports.reading.collection import baseline
from bnlab.reports.reading.run import Run
from bnlab.reports.thesis.experiments import norm_words


def sign_of(trend: Estimate | None, rising: bool) -> Verdict:
    """Supported if the slope's whole interval has the sign, contradicted if it has the other one.

    Fewer than three points have no slope.
    """
    if trend is None or trend.low <= 0 <= trend.high:
        return "cannot tell"
    return decide((trend.value > 0) == rising, True)


def accuracy_trend(evidence: Evidence, sides: Sequence[bool], rising: bool) -> Finding | None:
    """Judges the baseline's test accuracy over log2 of the batch size: the slope of a straight line through all runs,
    with its t-interval.

    Args:
        evidence: the runs.
        sides: batch norm off, on or both; both must support, and one is enough to contradict.
        rising: whether the claim is that accuracy grows with the batch size.
    """
    texts, verdicts, used = [], [], []
    for flag in sides:
        runs = [
            run
            for size in evidence.collection.baseline_sizes(evidence.architecture)
            for run in tested(evidence.runs("relu", flag, size))
        ]
        if len({run.batch_size for run in runs}) < 2:
            return None
        trend = slope([math.log2(run.batch_size) for run in runs], [100 * (run.test_acc or 0.0) for run in runs])
        verdicts.append(sign_of(trend, rising))
        texts.append(f"{norm_words(flag)}: {_trend_words(trend)} of {_points(runs)}")
        used += runs
    return evidence.finding(all_of(verdicts), "; ".join(texts), used)


def _trend_words(trend: Estimate | None, unit: str = "points") -> str:
    if trend is None:
        return "too few runs for a slope"
    return f"{trend.value:+.2f} {unit} for each doubling, 95 % interval {trend.low:+.2f} to {trend.high:+.2f},"


def _points(runs: Sequence[Run]) -> str:
    sizes = sorted({run.batch_size for run in runs})
    return f"{len(runs)} runs with batches of {sizes[0]} to {sizes[-1]}"


def better_at_sizes(evidence: Evidence, below: float = math.inf) -> Finding | None:
    """Judges whether batch norm has the higher test accuracy at every batch size smaller than `below`.

    Supported if it is higher beyond the interval at most sizes and lower at none; contradicted if it is lower beyond
    the interval at one. Two sizes are needed.
    """
    texts, verdicts, used = [], [], []
    for size in evidence.collection.baseline_sizes(evidence.architecture):
        gain, runs = gain_of(evidence, "relu", size)
        if gain is not None and size < below:
            verdicts.append(higher(gain))
            texts.append(f"batch {size}: {gain_words(gain)}")
            used += runs
    if len(verdicts) < 2:
        return None
    worse, mostly_better = "contradicted" in verdicts, verdicts.count("supported") > len(verdicts) / 2
    return evidence.finding(decide(mostly_better and not worse, worse), "; ".join(texts), used)


def overhead_trend(evidence: Evidence, rising: bool) -> Finding | None:
    """Judges batch norm's overhead per epoch, in percent, over log2 of the batch size, by the slope's t-interval.

    A size is one point, the mean over its runs, so a slope needs three sizes.
    """
    collection, net, dataset = evidence.collection, evidence.architecture, evidence.dataset
    pairs = [compare_times(collection, net, size, dataset) for size in collection.baseline_sizes(net)]
    overheads = {pair.batch_size: pair.overhead for pair in pairs if pair.overhead is not None}
    if len(overheads) < 2:
        return None
    trend = slope([math.log2(size) for size in overheads], list(overheads.values()))
    runs = collection.runs_of((baseline(net, size) for size in overheads), [dataset])
    shares = ", ".join(f"{size}: {overhead:.0f} %" for size, overhead in overheads.items())
    text = f"{_trend_words(trend, 'percentage points')} overhead by batch size: {shares}"
    return evidence.finding(sign_of(trend, rising), text, runs)
