"""The trivial predictor: how low a constant output brings a loss, and how much better outputs are. Pure functions.

Targets and outputs are (N, D): N samples, D columns, of which each may have a constant of its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Of a number of values in each of D columns: mean and sum of squared distances from it, (D,)."""

    number: float
    mean: Tensor
    squares: Tensor

    @property
    def variance(self) -> float:
        """Squared error of the best constant outputs, their columns' means: (Σ squares) / (number · D)."""
        return float(self.squares.sum() / max(self.number * self.squares.numel(), 1))


def moments(targets: Tensor) -> Moments:
    """Of targets (N, D); about their mean, so that large means cost no digits."""
    mean = targets.mean(0)
    return Moments(len(targets), mean, (targets - mean).square().sum(0))


def merged(one: Moments, other: Moments) -> Moments:
    """The moments of two batches together (Chan, Golub & LeVeque 1979)."""
    number = one.number + other.number
    apart = other.mean - one.mean
    mean = one.mean + apart * (other.number / number)
    return Moments(number, mean, one.squares + other.squares + apart.square() * (one.number * other.number / number))


def entropy(shares: Tensor) -> Tensor:
    """Cross entropy of the best constant output, the classes' shares (…, C): −Σ p ln p, in nats.

    >>> entropy(torch.tensor([0.5, 0.5, 0.0]))
    tensor(0.6931)
    """
    each: Tensor = torch.special.entr(shares)
    return each.sum(-1)


def binary_entropy(shares: Tensor) -> Tensor:
    """Binary cross entropy of the best constant outputs, the columns' shares of ones (D,): mean over columns.

    Shares outside of 0 … 1 have none, and give −∞.
    """
    each: Tensor = torch.special.entr(shares) + torch.special.entr(1 - shares)
    return each.mean()


def absolute_error_of_median(targets: Tensor) -> Tensor:
    """Absolute error of the best constant outputs, the columns' medians, for targets (N, D)."""
    return (targets - targets.median(0).values).abs().mean()


def r_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the targets' variance that outputs explain, both (N, D): 1 − Σ(o − y)² / Σ(y − ȳ)², pooled over columns.

    Corrected for the mean that is estimated from N targets, so that outputs equal to the true mean have 0 on average,
    whatever N. NaN for targets without a variance.
    """
    left = (outputs - targets).square().sum()
    spread = (targets - targets.mean(0)).square().sum() * (len(targets) / max(len(targets) - 1, 1))
    return torch.where(spread > 0, 1 - left / spread, torch.nan)


def spread(values: Tensor) -> Tensor:
    """Standard deviation over the samples of (N, D), mean over columns."""
    return values.std(0, correction=0).mean()


def share_outside(targets: Tensor, low: float, high: float, slack: float = 0.0) -> Tensor:
    """Share of targets outside of `low` … `high`, by more than `slack`."""
    return ((targets < low - slack) | (targets > high + slack)).float().mean()
