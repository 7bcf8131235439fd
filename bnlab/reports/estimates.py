"""Test accuracies and epoch times over seeds, with 95 % intervals, beside the thesis's numbers.

Every interval is two-sided and from Student's t-distribution, so it is wide for few runs. A single run has none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression, variance
from typing import Literal, NamedTuple

from bnlab.reports.reading.collection import Collection, Line, baseline
from bnlab.reports.reading.run import Run
from bnlab.reports.thesis import numbers
from bnlab.reports.thesis.experiments import BATCH_SIZE, thesis_dataset

CONFIDENCE = 0.95

# the source of an interval; "none" without one, for too few numbers
Basis = Literal["seeds", "test images", "none"]


@dataclass(frozen=True)
class Estimate:
    """A number and half the width of its 95 % interval, None without one."""

    value: float
    half_width: float | None
    n: int
    basis: Basis = "seeds"

    @property
    def low(self) -> float:
        """Lower end of the interval; the value itself without one."""
        return self.value - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        """Upper end of the interval; the value itself without one."""
        return self.value + (self.half_width or 0.0)


def t_quantile(degrees: float) -> float:
    """The factor of a two-sided 95 % interval: the 0.975 quantile of t for degrees of freedom above 0."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Mean ± t · s / √n of two values or more; one value has no interval."""
    n = len(values)
    if n == 1:
        return Estimate(float(values[0]), None, 1, "none")
    return Estimate(fmean(values), t_quantile(n - 1) * math.sqrt(variance(values) / n), n)


def difference(first: Sequence[float], second: Sequence[float], test_images: tuple[int, int] | None = None) -> Estimate:
    """mean(second) − mean(first), with Welch's interval where both have two values or more.

    One value on a side says nothing of other seeds. For accuracies (shares of `test_images`, of first and second) the
    interval is then that of the finite test sets, √(p(1−p)/N) each, taken as independent. The true interval is no
    narrower: a smaller difference is noise whatever the seeds.
    """
    value = fmean(second) - fmean(first)
    n = min(len(first), len(second))
    if n >= 2:
        shares = [variance(values) / len(values) for values in (first, second)]
        if not sum(shares):
            return Estimate(value, 0.0, n)
        weights = [share**2 / (len(values) - 1) for share, values in zip(shares, (first, second), strict=True)]
        degrees = sum(shares) ** 2 / sum(weights)  # Welch–Satterthwaite
        return Estimate(value, t_quantile(degrees) * math.sqrt(sum(shares)), n)
    if test_images is None or min(test_images) < 1:
        return Estimate(value, None, n, "none")
    shares = [fmean(first), fmean(second)]
    noise = sum(max(share * (1 - share), 0.0) / images for share, images in zip(shares, test_images, strict=True))
    return Estimate(value, t_quantile(math.inf) * math.sqrt(noise), n, "test images")


def slope(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """Least-squares slope of y over x with its t-interval (n − 2 degrees of freedom).

    None for fewer than three points, and where all x are equal.
    """
    n = len(x)
    if n < 3 or len(set(x)) < 2:
        return None
    line = linear_regression(x, y)
    rest = math.fsum((b - line.intercept - line.slope * a) ** 2 for a, b in zip(x, y, strict=True))
    error = math.sqrt(rest / (n - 2) / (variance(x) * (n - 1)))
    return Estimate(line.slope, t_quantile(n - 2) * error, n)


SignVerdict = Literal["agree", "differ", "within the interval"]


class Measured(NamedTuple):
    """A cell's test accuracy in percent, or its seconds per epoch."""

    estimate: Estimate | None  # None if no run has one
    diverged: int = 0  # the number of runs that diverged
    thesis: float | None = None  # the thesis's number for the cell


@dataclass(frozen=True)
class AccuracyPair:
    """Test accuracies of a line on a dataset, in percent; their difference in points."""

    line: Line
    dataset: str
    sides: tuple[Measured, Measured]  # vanilla, batch norm
    gain: Estimate | None  # batch norm − vanilla; None if one is missing

    @property
    def thesis_gain(self) -> float | None:
        """The thesis's batch norm − vanilla, with one decimal as there."""
        vanilla, batch_norm = (side.thesis for side in self.sides)
        return None if vanilla is None or batch_norm is None else round(batch_norm - vanilla, 1)

    @property
    def verdict(self) -> SignVerdict | None:
        """Whether our gain has the sign of the thesis's; None if one of the two is missing."""
        if self.gain is None or self.thesis_gain is None:
            return None
        return sign_verdict(self.gain, self.thesis_gain)


def sign_verdict(ours: Estimate, thesis: float) -> SignVerdict:
    """Whether two differences have the same sign; ours has none if its interval holds 0 or it is 0."""
    if ours.low <= 0 <= ours.high:
        return "within the interval"
    return "agree" if (ours.value > 0) == (thesis > 0) and thesis != 0 else "differ"


def accuracy(runs: Sequence[Run]) -> Measured:
    """Mean test accuracy of runs that differ in the seed."""
    known = [100 * run.test_acc for run in runs if run.test_acc is not None]
    return Measured(mean_estimate(known) if known else None, sum(run.diverged for run in runs))


def accuracy_gain(vanilla: Sequence[Run], batch_norm: Sequence[Run]) -> Estimate | None:
    """Difference of mean test accuracies in points, second − first; None if one of them has none."""
    sides = [[run for run in runs if run.test_acc is not None] for runs in (vanilla, batch_norm)]
    if not all(sides):
        return None
    images = [min(run.test_images or 0 for run in runs) for runs in sides]
    shares = [[run.test_acc or 0.0 for run in runs] for runs in sides]
    gain = difference(shares[0], shares[1], (images[0], images[1]))
    width = None if gain.half_width is None else 100 * gain.half_width
    return Estimate(100 * gain.value, width, gain.n, gain.basis)


def compare_accuracies(collection: Collection, line: Line, dataset: str) -> AccuracyPair:
    """The pair of a line on a dataset, also without runs."""
    name = line.thesis_experiment if line.batch_size == BATCH_SIZE else None

    def side(flag: bool) -> Measured:
        known = numbers.accuracy(line.architecture, name, thesis_dataset(dataset), flag) if name else None
        return accuracy(collection.cell(line, dataset, flag))._replace(thesis=known)

    return AccuracyPair(line, dataset, (side(False), side(True)), accuracy_gain(*collection.sides(line, dataset)))


@dataclass(frozen=True)
class TimePair:
    """Seconds per epoch of the baseline with one batch size on a dataset."""

    batch_size: int
    dataset: str
    sides: tuple[Measured, Measured]  # vanilla, batch norm

    @property
    def overhead(self) -> float | None:
        """Batch norm's overhead as a percentage of vanilla's time; None if one is missing."""
        vanilla, batch_norm = (side.estimate for side in self.sides)
        if vanilla is None or batch_norm is None or vanilla.value == 0:
            return None
        return 100 * (batch_norm.value / vanilla.value - 1)


def compare_times(collection: Collection, architecture: str, batch_size: int, dataset: str) -> TimePair:
    """The pair of a batch size on a dataset, also without runs."""

    def side(flag: bool) -> Measured:
        runs = collection.cell(baseline(architecture, batch_size), dataset, flag)
        ours = [run.seconds_per_epoch for run in runs if run.seconds_per_epoch is not None]
        known = numbers.epoch_seconds(architecture, batch_size, thesis_dataset(dataset), flag)
        return Measured(mean_estimate(ours) if ours else None, thesis=known)

    return TimePair(batch_size, dataset, (side(False), side(True)))


def mean_overhead(pairs: Sequence[TimePair]) -> float | None:
    """Mean over datasets of batch norm's overhead in percent; None if no dataset has both times."""
    known = [pair.overhead for pair in pairs if pair.overhead is not None]
    return fmean(known) if known else None
