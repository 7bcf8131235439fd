"""The training losses of a run."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

_RECENT_LOSSES = 400  # that are kept
_FIRST_LOSSES = 5  # whose largest is the scale of a loss before anything is learned


class Losses:
    """The training losses of all optimizer steps up to the present one, but for steps without a loss."""

    def __init__(self) -> None:
        self.count = 0
        self.first: float | None = None
        self.largest_early = 0.0  # the largest magnitude of the first ones, before the present one
        self.recent: deque[float] = deque(maxlen=_RECENT_LOSSES)

    def add(self, loss: float) -> None:
        """Take in the loss of the next step."""
        previous = self.last
        if previous is not None and self.count <= _FIRST_LOSSES and math.isfinite(previous):
            self.largest_early = max(self.largest_early, abs(previous))
        self.count += 1
        self.recent.append(loss)
        if not math.isfinite(loss):
            return
        if self.first is None:
            self.first = loss
            self.largest_early = max(self.largest_early, abs(loss))

    @property
    def last(self) -> float | None:
        """The present step's loss."""
        return self.recent[-1] if self.recent else None

    def streak(self, condition: Callable[[float], bool]) -> int:
        """The number of losses in a row, up to the present one, that meet a condition."""
        return next((n for n, loss in enumerate(reversed(self.recent)) if not condition(loss)), len(self.recent))

    def mean(self, steps: int, before: int = 0) -> float | None:
        """Mean loss of `steps` steps, the last of them `before` steps ago; None where too few are known.

        Losses that are not finite are left out, unless all are: their steps may have been skipped.
        """
        if len(self.recent) < steps + before:
            return None
        return _mean(list(self.recent)[len(self.recent) - steps - before : len(self.recent) - before])

    def smooth(self, steps: int = 10) -> float | None:
        """Mean of the last losses, or of all where there are fewer; of the finite ones, as `mean`."""
        return _mean(list(self.recent)[-steps:]) if self.recent else None

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: lists and numbers."""
        return {
            "count": self.count,
            "first": self.first,
            "largest_early": self.largest_early,
            "recent": list(self.recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.count, self.first = state["count"], state["first"]
        self.largest_early = state["largest_early"]
        self.recent = deque(state["recent"], maxlen=_RECENT_LOSSES)


def _mean(losses: Sequence[float]) -> float:
    return fmean([loss for loss in losses if math.isfinite(loss)] or losses)
