"""The size of a run's steps: how far they moved the median layer, and how many of its weights."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

_MOST = 128  # that are kept
_WARMING_UP = 1.5  # times


def median_layer(values: Mapping[str, float]) -> str:
    """The layer with the median value."""
    return sorted(values, key=lambda layer: values[layer])[len(values) // 2]


class MedianUpdates:
    """‖Δw‖/‖w‖ of the median layer at the recorded steps of a run; every second one goes when there are over 128."""

    def __init__(self) -> None:
        self._at: dict[int, float] = {}

    def add(self, step: int, update_ratio: Mapping[str, float]) -> None:
        """Take in a recorded step: layer → log10 of its ‖Δw‖/‖w‖; empty where none was recorded."""
        if update_ratio:
            self._at[step] = 10 ** update_ratio[median_layer(update_ratio)]
        if len(self._at) > _MOST:
            self._at = dict(list(self._at.items())[::2])

    def warming_up(self, step: int) -> bool:
        """Whether updates in the last quarter of the run up to `step` are 1.5 times those in its second quarter.

        Steadily growing ones are 2.3 times as large. Means are compared, since single steps are noisy.
        """
        now = [ratio for at, ratio in self._at.items() if at >= 3 * step / 4]
        before = [ratio for at, ratio in self._at.items() if step / 4 < at <= step / 2]
        return bool(now and before) and fmean(now) > _WARMING_UP * fmean(before)

    def state_dict(self) -> list[Any]:
        """The state for a checkpoint: lists and numbers."""
        return [[step, ratio] for step, ratio in self._at.items()]

    def load_state_dict(self, state: list[Any]) -> None:
        """Take over the state of a checkpoint."""
        self._at = dict(state)


class EarlyChanges:
    """The median layer's share of weights that a step changed, at the recorded steps of a run's beginning."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def add(self, step: int, changed_frac: Mapping[str, float]) -> None:
        """Take in a recorded step: layer → share; empty where none was recorded, NaN where a layer had no gradient."""
        known = {layer: share for layer, share in changed_frac.items() if math.isfinite(share)}
        if known and len(self.at) < _MOST:
            self.at[step] = known[median_layer(known)]
