"""Judges of test accuracies: two nets, one net against several, two gains, and all nine experiments."""

import math
from collections.abc import Sequence

from bnlab.reports.claims.claim import MATCH, Evidence, Finding, Side, all_of, at_least, decide, higher
from bnlab.reports.estimates import Estimate, accuracy, accuracy_gain
from bnlab.reports.reading.run import Run
from bnlab.reports.thesis import numbers
from bnlab.reports.thesis.experiments import BATCH_SIZE, EXPERIMENTS, thesis_dataset

_FEWEST = 5  # the smallest number of experiments for a verdict on "most"


def tested(runs: Sequence[Run]) -> list[Run]:
    """The runs that have a test accuracy."""
    return [run for run in runs if run.test_acc is not None]


def gain_of(evidence: Evidence, experiment: str, batch_size: int = BATCH_SIZE) -> tuple[Estimate | None, list[Run]]:
    """Batch norm's gain in an experiment, None if runs are missing, and the runs that it is of."""
    vanilla, batch_norm = (tested(side) for side in evidence.sides(experiment, batch_size))
    return accuracy_gain(vanilla, batch_norm), vanilla + batch_norm


def compare_sides(evidence: Evidence, lower: Side, upper: Side, margin: float = 0.0) -> Finding | None:
    """Judges the test accuracy of `upper` minus that of `lower`, in points, by its 95 % interval.

    The interval is Welch's over seeds if both have several. With one seed it is that of the finite test set, which
    leaves out the spread of seeds and so is too narrow: such a verdict is weak, and n stands beside it.
    """
    below, above = (tested(evidence.runs(*side)) for side in (lower, upper))
    gain = accuracy_gain(below, above)
    if gain is None:
        return None
    words = f"{_side_words(evidence, upper, above)} against {_side_words(evidence, lower, below)}"
    return evidence.finding(at_least(gain, margin), f"{words}: {gain_words(gain)}", below + above)


def _side_words(evidence: Evidence, side: Side, runs: Sequence[Run]) -> str:
    """`mlp_relu batch norm 98.15 ± 0.10 (n = 3; thesis 98.2)`."""
    found = accuracy(runs)
    assert found.estimate is not None
    details = [f"n = {found.estimate.n}"]
    if found.diverged:
        details.append(f"{found.diverged} diverged")
    known = numbers.accuracy(evidence.architecture, side.experiment, thesis_dataset(evidence.dataset), side.batch_norm)
    if known is not None:
        details.append(f"thesis {known:.1f}")
    half = found.estimate.half_width
    spread = "" if half is None else f" ± {half:.2f}"
    return f"{side.name(evidence.architecture)} {found.estimate.value:.2f}{spread} ({'; '.join(details)})"


def gain_words(gain: Estimate) -> str:
    """`+1.46 points, 95 % interval −0.10 to +3.02 (test images)`."""
    text = f"{gain.value:+.2f} points"
    if gain.half_width is None:
        return f"{text}, without an interval"
    source = "seeds" if gain.basis == "seeds" else "one seed, so of test images alone"
    return f"{text}, 95 % interval {gain.low:+.2f} to {gain.high:+.2f} ({source})"


def matches_all(evidence: Evidence, best: Side, others: Sequence[Side]) -> Finding | None:
    """Judges whether `best` is at most `MATCH` points below each of the others; one further above contradicts."""
    found = [finding for other in others if (finding := compare_sides(evidence, other, best, MATCH)) is not None]
    if len(found) < len(others):
        return None
    text = "; ".join(finding.numbers for finding in found)
    return evidence.finding(all_of(one.verdict for one in found), text, [run for one in found for run in one.runs])


def smaller_gain(evidence: Evidence, experiment: str, than: str) -> Finding | None:
    """Judges whether batch norm's gain in test accuracy is smaller in one experiment than in another.

    The difference of the gains must exceed half its interval, √(a² + b²): the two gains are taken as independent.
    """
    (base, base_runs), (other, other_runs) = (gain_of(evidence, name) for name in (than, experiment))
    if base is None or other is None:
        return None
    net = evidence.architecture
    text = f"{net}_{than}: {gain_words(base)}; {net}_{experiment}: {gain_words(other)}"
    half = math.nan  # which no change exceeds
    if base.half_width is not None and other.half_width is not None:
        half = math.hypot(base.half_width, other.half_width)
    change = other.value - base.value
    return evidence.finding(decide(change < -half, change > half), text, base_runs + other_runs)


def most_gain(evidence: Evidence) -> Finding | None:
    """Supported if batch norm has the higher test accuracy, beyond the interval, in more than half of the experiments
    on a dataset; contradicted if vanilla has. At least five experiments are needed.
    """
    found = [(higher(gain), runs) for name in EXPERIMENTS for gain, runs in [gain_of(evidence, name)] if gain]
    if len(found) < _FEWEST:
        return None
    verdicts = [verdict for verdict, _ in found]
    better, worse, count = verdicts.count("supported"), verdicts.count("contradicted"), len(found)
    text = f"of {count} experiments batch norm is better in {better}, worse in {worse}, within the interval in the rest"
    return evidence.finding(
        decide(better > count / 2, worse > count / 2), text, [run for _, some in found for run in some]
    )


def dropout_is_best(evidence: Evidence) -> Finding | None:
    """Supported if vanilla with dropout has the highest test accuracy of all, beyond the interval to the second best.

    Contradicted if another is higher beyond the interval. All nine experiments are needed, with and without batch norm.
    """
    sides = [Side(experiment, flag) for experiment in EXPERIMENTS for flag in (False, True)]
    runs = {side: tested(evidence.runs(*side)) for side in sides}
    known = {side: found for side in sides if (found := accuracy(runs[side]).estimate) is not None}
    if len(known) < len(sides):
        return None
    best = Side("dropout", False)
    rival = max((side for side in sides if side != best), key=lambda side: known[side].value)
    gain = accuracy_gain(runs[rival], runs[best])
    assert gain is not None
    text = f"{_side_words(evidence, best, runs[best])} against the best other, "
    text += f"{_side_words(evidence, rival, runs[rival])}: {gain_words(gain)}"
    return evidence.finding(higher(gain), text, [run for side in sides for run in runs[side]])
