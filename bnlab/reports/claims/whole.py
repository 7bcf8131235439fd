"""Judges of the experiments as a whole."""

from __future__ import annotations

from bnlab.reports.accuracy import accuracy, accuracy_gain
from bnlab.reports.claims.accuracies import Side, gain_words, higher
from bnlab.reports.claims.verdict import Evidence, Finding, Verdict
from bnlab.reports.names import EXPERIMENTS, dataset_title

_FEWEST = 5  # experiments on a dataset that "most" can be said of


def most_gain(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
    """Supported if batch norm has the higher test accuracy, beyond the interval, in more than half of the experiments
    on a dataset; contradicted if vanilla has; at least five experiments are needed.
    """
    verdicts, used = [], []
    for experiment in EXPERIMENTS:
        sides = [Side(experiment, flag).runs(evidence, architecture, dataset) for flag in (False, True)]
        gain = accuracy_gain(*sides)
        if gain is not None:
            verdicts.append(higher(gain))
            used += sides[0] + sides[1]
    count = len(verdicts)
    if count < _FEWEST:
        return None
    better, worse = verdicts.count("supported"), verdicts.count("contradicted")
    verdict: Verdict = "supported" if better > count / 2 else "contradicted" if worse > count / 2 else "cannot tell"
    text = f"of {count} experiments batch norm is better in {better}, worse in {worse}, within the interval in the rest"
    return Finding(dataset_title(dataset), verdict, text, tuple(used))


def dropout_is_best(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
    """Supported if vanilla with dropout has the highest test accuracy of all, beyond the interval to the next one.

    Contradicted if another is higher beyond the interval. All nine experiments are needed, with and without batch norm.
    """
    best, others, used = Side("dropout", False), [], []
    for experiment in EXPERIMENTS:
        for flag in (False, True):
            side = Side(experiment, flag)
            runs = side.runs(evidence, architecture, dataset)
            found = accuracy(runs).estimate
            if found is None:
                return None
            used += runs
            if side != best:
                others.append((found.value, side, runs))
    _, rival, rival_runs = max(others, key=lambda other: other[0])
    runs = best.runs(evidence, architecture, dataset)
    gain = accuracy_gain(rival_runs, runs)
    assert gain is not None
    text = f"{best.words(architecture, dataset, runs)} against the best other, "
    text += f"{rival.words(architecture, dataset, rival_runs)}: {gain_words(gain)}"
    return Finding(dataset_title(dataset), higher(gain), text, tuple(used))
