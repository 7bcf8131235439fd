"""Test accuracies over seeds, what batch norm gains, and whether the thesis has the same sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bnlab.reports import reference
from bnlab.reports.collection import Collection, Line
from bnlab.reports.names import BATCH_SIZE, thesis_dataset
from bnlab.reports.runs import Run
from bnlab.reports.statistics import Estimate, difference, mean_estimate

SignVerdict = Literal["agree", "differ", "within the interval"]


@dataclass(frozen=True)
class Accuracy:
    """Test accuracy of one cell's runs, in percent."""

    estimate: Estimate | None  # None: no run has a test accuracy
    diverged: int  # so many of the runs


@dataclass(frozen=True)
class Pair:
    """A line on a dataset, vanilla and with batch norm, in percent and points, beside the thesis."""

    line: Line
    dataset: str
    vanilla: Accuracy
    batch_norm: Accuracy
    gain: Estimate | None  # batch norm − vanilla; None where one is missing
    thesis_vanilla: float | None
    thesis_batch_norm: float | None

    @property
    def thesis_gain(self) -> float | None:
        """Batch norm − vanilla after the thesis, one decimal as there."""
        if self.thesis_vanilla is None or self.thesis_batch_norm is None:
            return None
        return round(self.thesis_batch_norm - self.thesis_vanilla, 1)

    @property
    def verdict(self) -> SignVerdict | None:
        """Whether our gain has the sign of the thesis's; None where one of the two is missing."""
        if self.gain is None or self.thesis_gain is None:
            return None
        return sign_verdict(self.gain, self.thesis_gain)


def sign_verdict(ours: Estimate, thesis: float) -> SignVerdict:
    """Whether two differences have one sign; ours has none where its interval holds 0, or where it is 0."""
    if ours.low <= 0 <= ours.high:
        return "within the interval"
    return "agree" if (ours.value > 0) == (thesis > 0) and thesis != 0 else "differ"


def accuracy(runs: Sequence[Run]) -> Accuracy:
    """Mean test accuracy of runs that differ in the seed."""
    known = [100 * run.test_acc for run in runs if run.test_acc is not None]
    return Accuracy(mean_estimate(known) if known else None, sum(run.diverged for run in runs))


def accuracy_gain(vanilla: Sequence[Run], batch_norm: Sequence[Run]) -> Estimate | None:
    """Difference of mean test accuracies in points, second − first; None where either has none."""
    sides = [[run for run in runs if run.test_acc is not None] for runs in (vanilla, batch_norm)]
    if not all(sides):
        return None
    images = [min(run.test_images or 0 for run in runs) for runs in sides]
    shares = [[run.test_acc or 0.0 for run in runs] for runs in sides]
    gain = difference(shares[0], shares[1], (images[0], images[1]))
    width = None if gain.half_width is None else 100 * gain.half_width
    return Estimate(100 * gain.value, width, gain.n, gain.basis)


def compare(collection: Collection, line: Line, dataset: str) -> Pair:
    """A line's two cells on a dataset, also where there are no runs."""
    vanilla, batch_norm = (collection.cell(line, dataset, flag) for flag in (False, True))
    name = line.thesis_experiment if line.batch_size == BATCH_SIZE else None
    known = [
        reference.accuracy(line.architecture, name, thesis_dataset(dataset), flag) if name else None
        for flag in (False, True)
    ]
    return Pair(line, dataset, accuracy(vanilla), accuracy(batch_norm), accuracy_gain(vanilla, batch_norm), *known)
