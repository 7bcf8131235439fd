"""Losses that are no number any more. Pure functions."""

import math
from collections.abc import Iterable


def not_finite(loss: float) -> bool:
    """Whether a loss is NaN or infinite, tested explicitly: comparisons with NaN are false."""
    return not math.isfinite(loss)


def first_non_finite(losses: Iterable[float]) -> int | None:
    """The place of the first loss that is NaN or infinite; None where all are finite.

    >>> first_non_finite([0.5, 2.0, float("nan"), float("inf")])
    2
    """
    return next((place for place, loss in enumerate(losses) if not_finite(loss)), None)
