"""How far the median layer moved in a step, look by look since the run began; a few numbers that checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

_MOST = 128
_WARMS_UP = 1.5


def median_layer(values: Mapping[str, float]) -> str:
    """The layer in the middle, by its value."""
    return sorted(values, key=lambda layer: values[layer])[len(values) // 2]


class Moves:
    """‖Δw‖/‖w‖ of the median layer at the looks since step 0; at every second one once there are more than 128."""

    def __init__(self) -> None:
        self._at: dict[int, float] = {}

    def add(self, step: int, update_ratio: Mapping[str, float]) -> None:
        """Take in a look: layers and the log10 of their moves; nothing where there are none."""
        if update_ratio:
            self._at[step] = 10 ** update_ratio[median_layer(update_ratio)]
        if len(self._at) > _MOST:
            self._at = dict(list(self._at.items())[::2])

    def warm_up(self, step: int) -> bool:
        """Whether moves in the last quarter of the run up to `step` are 1.5 times those in its second quarter.

        If they grow steadily they are 2.3 times. Means, as single looks are noisy.
        """
        now = [move for at, move in self._at.items() if at >= 3 * step / 4]
        before = [move for at, move in self._at.items() if step / 4 < at <= step / 2]
        return bool(now and before) and fmean(now) > _WARMS_UP * fmean(before)

    def state_dict(self) -> list[Any]:
        """Lists and numbers."""
        return [[step, move] for step, move in self._at.items()]

    def load_state_dict(self, state: list[Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._at = dict(state)
