"""Judges of training: whether a net learns at all, and how soon it converges."""

from collections.abc import Sequence
from statistics import fmean

from bnlab.reports.claims.claim import Evidence, Finding, Side, Verdict, decide, higher
from bnlab.reports.estimates import difference
from bnlab.reports.reading.run import Run
from bnlab.reports.thesis import numbers
from bnlab.reports.thesis.experiments import norm_words, thesis_dataset

# share of the largest class in the test set: the accuracy of a net that always gives the same answer
CHANCE = {"mnist": 0.1135, "svhn": 0.1959, "cifar10": 0.1, "cifar100": 0.01, "digits": 0.1017}
LEARNED = 1.5  # times chance
REACHED = 0.99  # of the best validation accuracy that both nets reach
_FEWER_EPOCHS, _SHARE = 3, 2 / 3  # the smallest difference that counts with one seed


def learned(run: Run) -> bool | None:
    """Whether a run is better than chance: not diverged, and more accurate than `LEARNED` times the largest class.

    The test accuracy counts or, without one, the validation accuracy; None if that or the level of chance is unknown.
    """
    if run.diverged:
        return False
    reached = run.val_acc if run.test_acc is None else run.test_acc
    level = _chance(run.dataset)
    return None if reached is None or level is None else reached > LEARNED * level


def _chance(dataset: str) -> float | None:
    return CHANCE.get(thesis_dataset(dataset) or dataset)


def trains_only_with_batch_norm(evidence: Evidence, experiment: str) -> Finding | None:
    """Supported if no vanilla run has `learned` and every batch-normalised one has.

    Contradicted if every vanilla run has, or no batch-normalised one; cannot tell if seeds disagree.
    """
    sides = evidence.sides(experiment)
    if not all(sides):
        return None
    vanilla, batch_norm = ([learned(run) for run in side] for side in sides)
    known = None not in vanilla + batch_norm
    only = known and not any(vanilla) and all(batch_norm)
    verdict = decide(only, known and (all(vanilla) or not any(batch_norm)))
    level = _chance(evidence.dataset)
    parts = [_training_words(experiment, evidence, side) for side in sides]
    parts.append("chance unknown" if level is None else f"chance {100 * level:.2f}")
    return evidence.finding(verdict, "; ".join(parts), sides[0] + sides[1])


def _training_words(experiment: str, evidence: Evidence, runs: Sequence[Run]) -> str:
    """`vanilla: 0 of 3 learned, 2 diverged, 9.80–11.35 (thesis 11.4)`."""
    flag = runs[0].batch_norm
    text = f"{norm_words(flag)}: {sum(learned(run) is True for run in runs)} of {len(runs)} learned"
    diverged = sum(run.diverged for run in runs)
    if diverged:
        text += f", {diverged} diverged"
    tested = all(run.test_acc is not None for run in runs)
    values = [run.test_acc if tested else run.val_acc for run in runs]
    reached = sorted(100 * value for value in values if value is not None)
    if reached:
        kind = "test accuracy" if tested else "validation accuracy"
        span = f"{reached[0]:.2f}" if len(reached) == 1 else f"{reached[0]:.2f} to {reached[-1]:.2f}"
        text += f", {kind} {span}"
    thesis = numbers.accuracy(evidence.architecture, experiment, thesis_dataset(evidence.dataset), flag)
    return text if thesis is None else f"{text} (thesis {thesis:.1f})"


def epochs_to(accuracies: Sequence[float], target: float) -> int | None:
    """The first epoch, counted from 1, that reaches an accuracy; None if none does.

    >>> epochs_to([0.5, 0.8, 0.7, 0.9], 0.8)
    2
    """
    return next((epoch for epoch, value in enumerate(accuracies, 1) if value >= target), None)


def converges_sooner(evidence: Evidence, slow: Side, fast: Side) -> Finding | None:
    """Judges the number of epochs to `REACHED` of the best validation accuracy that both nets reach (the lower of their
    mean best accuracies).

    With several seeds on both sides by Welch's interval; with one, a net is sooner if it needs at most two thirds of
    the other's epochs, and at least three epochs less.
    """
    sides = [evidence.runs(*net) for net in (slow, fast)]
    series = [[evidence.curves(run).by_epoch("val_acc")[1] for run in side] for side in sides]
    series = [[values for values in side if values] for side in series]
    if not all(series):
        return None
    target = REACHED * min(fmean([max(values) for values in side]) for side in series)
    epochs = [[epochs_to(values, target) for values in side] for side in series]
    words = []
    for net, found in zip((slow, fast), epochs, strict=True):
        listed = ", ".join("never" if epoch is None else str(epoch) for epoch in found)
        words.append(f"{net.name(evidence.architecture)} {listed} (n = {len(found)})")
    text = f"epochs to {100 * target:.2f} % validation accuracy: {', '.join(words)}"
    trained = [[len(values) for values in side] for side in series]
    return evidence.finding(sooner(epochs, trained), text, sides[0] + sides[1])


def sooner(epochs: Sequence[Sequence[int | None]], trained: Sequence[Sequence[int]]) -> Verdict:
    """Whether the second net's epochs are fewer than the first's, by the rule of `fewer`.

    A run that never got there counts with the epochs that it was trained for (`trained`). It needs more than these, so
    it can only speak for the other net.
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
    """Whether `few` are fewer epochs than `many`, by the rule of `converges_sooner`."""
    if min(len(many), len(few)) > 1:
        return higher(difference(few, many))
    before, after = fmean(many), fmean(few)
    if abs(before - after) < _FEWER_EPOCHS or min(before, after) > _SHARE * max(before, after):
        return "cannot tell"
    return decide(after < before, True)
