"""Means over seeds, differences of two means, and slopes, with 95 % intervals.

Every interval is two-sided and from Student's t-distribution, so it is wide for few runs. A single run has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression, variance
from typing import Literal

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
