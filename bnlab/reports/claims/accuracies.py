"""Judges of test accuracies: two nets, one net against several, two gains, and all nine experiments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bnlab.reports.claims.claim import Evidence, Finding, Judge, Side, Verdict, all_of, at_least, higher
from bnlab.reports.estimates.intervals import Estimate
from bnlab.reports.estimates.pairs import accuracy, accuracy_gain
from bnlab.reports.reading.run import Run
from bnlab.reports.thesis import numbers
from bnlab.reports.thesis.experiments import EXPERIMENTS, dataset_title, thesis_dataset

_FEWEST = 5  # the smallest number of experiments for a verdict on "most"


def tested(runs: Sequence[Run]) -> list[Run]:
    """The runs that have a test accuracy."""
    return [run for run in runs if run.test_acc is not None]


def compare_sides(lower: Side, upper: Side, rule: Callable[[Estimate], Verdict] = higher) -> Judge:
    """Judges the test accuracy of `upper` minus that of `lower`, in points, by its 95 % interval.

    The interval is Welch's over seeds if both have several. With one seed it is that of the finite test set, which
    leaves out the spread of seeds and so is too narrow: such a verdict is weak, and n stands beside it.
    """

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        sides = [(side, tested(side.runs(evidence, architecture, dataset))) for side in (lower, upper)]
        gain = accuracy_gain(sides[0][1], sides[1][1])
        if gain is None:
            return None
        words = " against ".join(_side_words(side, architecture, dataset, runs) for side, runs in reversed(sides))
        runs = tuple(run for _, some in sides for run in some)
        return Finding(dataset_title(dataset), rule(gain), f"{words}: {gain_words(gain)}", runs)

    return judge


def _side_words(side: Side, architecture: str, dataset: str, runs: Sequence[Run]) -> str:
    """`mlp_relu batch norm 98.15 ± 0.10 (n = 3; thesis 98.2)`."""
    found = accuracy(runs)
    assert found.estimate is not None
    details = [f"n = {found.estimate.n}"]
    if found.diverged:
        details.append(f"{found.diverged} diverged")
    known = numbers.accuracy(architecture, side.experiment, thesis_dataset(dataset), side.batch_norm)
    if known is not None:
        details.append(f"thesis {known:.1f}")
    half = found.estimate.half_width
    spread = "" if half is None else f" ± {half:.2f}"
    return f"{side.name(architecture)} {found.estimate.value:.2f}{spread} ({'; '.join(details)})"


def gain_words(gain: Estimate) -> str:
    """`+1.46 points, 95 % interval −0.10 to +3.02 (test images)`."""
    text = f"{gain.value:+.2f} points"
    if gain.half_width is None:
        return f"{text}, without an interval"
    source = "seeds" if gain.basis == "seeds" else "one seed, so of test images alone"
    return f"{text}, 95 % interval {gain.low:+.2f} to {gain.high:+.2f} ({source})"


def matches_all(best: Side, others: Sequence[Side]) -> Judge:
    """Judges whether `best` is at most `MATCH` points below each of the others; one further above contradicts."""
    judges = [compare_sides(other, best, at_least) for other in others]

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        found = [each(evidence, architecture, dataset) for each in judges]
        known = [finding for finding in found if finding is not None]
        if len(known) < len(judges):
            return None
        verdict = all_of(finding.verdict for finding in known)
        runs = tuple(dict.fromkeys(run for finding in known for run in finding.runs))
        return Finding(dataset_title(dataset), verdict, "; ".join(finding.numbers for finding in known), runs)

    return judge


def smaller_gain(experiment: str, than: str) -> Judge:
    """Judges whether batch norm's gain in test accuracy is smaller in one experiment than in another.

    The difference of the gains must exceed half its interval, √(a² + b²): the two gains are taken as independent.
    """

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        gains, used = [], []
        for name in (than, experiment):
            sides = [tested(side) for side in evidence.sides(architecture, name, dataset)]
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


def most_gain(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
    """Supported if batch norm has the higher test accuracy, beyond the interval, in more than half of the experiments
    on a dataset; contradicted if vanilla has. At least five experiments are needed.
    """
    verdicts, used = [], []
    for experiment in EXPERIMENTS:
        sides = [tested(side) for side in evidence.sides(architecture, experiment, dataset)]
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
    """Supported if vanilla with dropout has the highest test accuracy of all, beyond the interval to the second best.

    Contradicted if another is higher beyond the interval. All nine experiments are needed, with and without batch norm.
    """
    best, others, used = Side("dropout", False), [], []
    for experiment in EXPERIMENTS:
        for flag in (False, True):
            side = Side(experiment, flag)
            runs = tested(side.runs(evidence, architecture, dataset))
            found = accuracy(runs).estimate
            if found is None:
                return None
            used += runs
            if side != best:
                others.append((found.value, side, runs))
    _, rival, rival_runs = max(others, key=lambda other: other[0])
    runs = tested(best.runs(evidence, architecture, dataset))
    gain = accuracy_gain(rival_runs, runs)
    assert gain is not None
    text = f"{_side_words(best, architecture, dataset, runs)} against the best other, "
    text += f"{_side_words(rival, architecture, dataset, rival_runs)}: {gain_words(gain)}"
    return Finding(dataset_title(dataset), higher(gain), text, tuple(used))
