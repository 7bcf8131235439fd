"""Which units of a rectifier have been silent, over a sliding window of records and over the epoch."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor


class DeadUnits(NamedTuple):
    """Share of units that were not once positive, and over how many samples that was seen."""

    fraction: float
    samples: int


class UnitWindow:
    """For each unit of one layer, when it was last positive.

    Args:
        length: records that the sliding window spans.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._last_active = torch.zeros(0, dtype=torch.int64)
        self._samples: deque[int] = deque(maxlen=length)
        self._records = 0
        self._epoch_start = 0
        self._epoch_samples = 0

    def add(self, active: Tensor, samples: int) -> None:
        """Take in one record: `active` (units,) tells which units were positive in any of `samples` samples."""
        if active.numel() != self._last_active.numel():  # a layer of another size took the name: start anew
            self.__init__(self.length)  # type: ignore[misc]
            self._last_active = torch.zeros(active.numel(), dtype=torch.int64)
        self._records += 1
        self._last_active[active] = self._records
        self._samples.append(samples)
        self._epoch_samples += samples

    def window(self) -> DeadUnits:
        """Dead over the last `length` records, or over as many as there are."""
        return self._silent_since(max(self._records - self.length, 0), sum(self._samples))

    def pop_epoch(self) -> DeadUnits:
        """Dead over all records since the last call; start the next epoch."""
        dead = self._silent_since(self._epoch_start, self._epoch_samples)
        self._epoch_start, self._epoch_samples = self._records, 0
        return dead

    def _silent_since(self, record: int, samples: int) -> DeadUnits:
        units = max(self._last_active.numel(), 1)
        return DeadUnits(int((self._last_active <= record).sum()) / units, samples)
