"""Judges of test accuracies: which of two is higher, and what trains at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bnlab.reports import reference
from bnlab.reports.accuracy import accuracy, accuracy_gain
from bnlab.reports.claims.verdict import Evidence, Finding, Judge, Verdict
from bnlab.reports.names import BATCH_SIZE, dataset_title, norm_words, thesis_dataset
from bnlab.reports.runs import Run
from bnlab.reports.statistics import Estimate

# share of the largest class in the test set: what a net that always says the same gets
CHANCE = {"mnist": 0.1135, "svhn": 0.1959, "cifar10": 0.1, "cifar100": 0.01, "digits": 0.1017}
LEARNED = 1.5  # times chance
MATCH = 0.5  # points


class Side(NamedTuple):
    """One of two things that are compared."""

    experiment: str
    batch_norm: bool
    batch_size: int = BATCH_SIZE

    def runs(self, evidence: Evidence, architecture: str, dataset: str) -> list[Run]:
        """Its runs that have a test accuracy."""
        runs = evidence.runs(architecture, self.experiment, dataset, self.batch_norm, self.batch_size)
        return [run for run in runs if run.test_acc is not None]

    def words(self, architecture: str, dataset: str, runs: Sequence[Run]) -> str:
        """`mlp_relu batch norm 98.15 ± 0.10 (n = 3; thesis 98.2)`."""
        found = accuracy(runs)
        assert found.estimate is not None
        size = f" batch {self.batch_size}" if self.batch_size != BATCH_SIZE else ""
        details = [f"n = {found.estimate.n}"]
        if found.diverged:
            details.append(f"{found.diverged} diverged")
        known = reference.accuracy(architecture, self.experiment, thesis_dataset(dataset), self.batch_norm)
        if known is not None and self.batch_size == BATCH_SIZE:
            details.append(f"thesis {known:.1f}")
        half = found.estimate.half_width
        spread = "" if half is None else f" ± {half:.2f}"
        name = f"{architecture}_{self.experiment} {norm_words(self.batch_norm)}{size}"
        return f"{name} {found.estimate.value:.2f}{spread} ({'; '.join(details)})"


def higher(gain: Estimate) -> Verdict:
    """Supported if the whole interval of the gain lies above 0, contradicted if below; without one nothing is told."""
    return at_least(gain, 0.0)


def at_least(gain: Estimate, margin: float = MATCH) -> Verdict:
    """Supported if the whole interval of the gain lies above −margin (in points), contradicted if below."""
    if gain.half_width is None:
        return "cannot tell"
    if gain.low > -margin:
        return "supported"
    return "contradicted" if gain.high < -margin else "cannot tell"


def compare_sides(lower: Side, upper: Side, rule: Callable[[Estimate], Verdict] = higher) -> Judge:
    """Judges the test accuracy of `upper` minus that of `lower`, in points, by its 95 % interval.

    The interval is Welch's over seeds where both have several; with one seed it is that of the finite test set, which
    is too narrow by what seeds make out, so a verdict of one seed is a weak one: n stands beside it.
    """

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        sides = [(side, side.runs(evidence, architecture, dataset)) for side in (lower, upper)]
        gain = accuracy_gain(sides[0][1], sides[1][1])
        if gain is None:
            return None
        words = " against ".join(side.words(architecture, dataset, runs) for side, runs in reversed(sides))
        runs = tuple(run for _, some in sides for run in some)
        return Finding(dataset_title(dataset), rule(gain), f"{words}: {gain_words(gain)}", runs)

    return judge


def gain_words(gain: Estimate) -> str:
    """`+1.46 points, 95 % interval −0.10 to +3.02 (test images)`."""
    text = f"{gain.value:+.2f} points"
    if gain.half_width is None:
        return f"{text}, without an interval"
    source = "seeds" if gain.basis == "seeds" else "one seed, so of test images alone"
    return f"{text}, 95 % interval {gain.low:+.2f} to {gain.high:+.2f} ({source})"


def matches_all(best: Side, others: Sequence[Side]) -> Judge:
    """Judges whether `best` is at most `MATCH` points below each of the others; one that it is below contradicts."""
    judges = [compare_sides(other, best, at_least) for other in others]

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        found = [each(evidence, architecture, dataset) for each in judges]
        known = [finding for finding in found if finding is not None]
        if len(known) < len(judges):
            return None
        verdicts = [finding.verdict for finding in known]
        verdict: Verdict = "supported" if set(verdicts) == {"supported"} else "cannot tell"
        if "contradicted" in verdicts:
            verdict = "contradicted"
        runs = tuple(dict.fromkeys(run for finding in known for run in finding.runs))
        return Finding(dataset_title(dataset), verdict, "; ".join(finding.numbers for finding in known), runs)

    return judge


def learned(run: Run) -> bool | None:
    """Whether a run got further than chance: not diverged, and an accuracy above `LEARNED` times the largest class.

    The test accuracy counts, without one the validation accuracy; None where that or the level of chance is unknown.
    """
    if run.diverged:
        return False
    reached = run.val_acc if run.test_acc is None else run.test_acc
    level = CHANCE.get(thesis_dataset(run.dataset) or run.dataset)
    return None if reached is None or level is None else reached > LEARNED * level


def trains_only_with_batch_norm(experiment: str) -> Judge:
    """Supported if no vanilla run learns and every batch-normalised one does, after `learned`.

    Contradicted if every vanilla run learns, or no batch-normalised one; seeds that disagree cannot tell.
    """

    def judge(evidence: Evidence, architecture: str, dataset: str) -> Finding | None:
        sides = [evidence.runs(architecture, experiment, dataset, flag) for flag in (False, True)]
        if not all(sides):
            return None
        known = [[learned(run) for run in side] for side in sides]
        verdict: Verdict = "cannot tell"
        if not any(None in side for side in known):
            if not any(known[0]) and all(known[1]):
                verdict = "supported"
            elif all(known[0]) or not any(known[1]):
                verdict = "contradicted"
        level = CHANCE.get(thesis_dataset(dataset) or dataset)
        parts = [_training_words(experiment, architecture, dataset, side) for side in sides]
        parts.append("chance unknown" if level is None else f"chance {100 * level:.2f}")
        return Finding(dataset_title(dataset), verdict, "; ".join(parts), tuple(sides[0] + sides[1]))

    return judge


def _training_words(experiment: str, architecture: str, dataset: str, runs: Sequence[Run]) -> str:
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
    thesis = reference.accuracy(architecture, experiment, thesis_dataset(dataset), flag)
    return text if thesis is None else f"{text} (thesis {thesis:.1f})"
