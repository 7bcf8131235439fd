"""Records: the values of one optimizer step or of one epoch, and their means over an epoch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.core.device import DeviceValues


class Moment(NamedTuple):
    """A place in a run."""

    step: int  # on the axis that `self.log` uses
    epoch: int


class Record(NamedTuple):
    """Values that were recorded at one moment."""

    step: int  # on the axis that `self.log` uses
    epoch: int
    wall_time: float  # seconds since 1970
    values: dict[str, float]  # tag (`<quantity>/<NN>_<layer>`, or without a layer `<quantity>`) to value


class Table(NamedTuple):
    """The values of K recorded steps with the same tags; an empty one stands for steps that are left out."""

    tags: tuple[str, ...]
    values: Tensor  # (K, tags), float64, on the host

    @classmethod
    def of(cls, values: dict[str, float]) -> Table:
        """The table of one step."""
        return cls(tuple(values), torch.tensor([list(values.values())], dtype=torch.float64))


Read = Callable[[Sequence[Any]], list[Table]]


@dataclass(eq=False)
class Taken(DeviceValues):
    """What one recorded step left, until it is read.

    Attributes:
        record: when that was; without values.
        read: gives the tables of K such steps, in order, from their `value`s on the host.
    """

    record: Record
    read: Read


class EpochMeans:
    """Means over an epoch's records, tag by tag; a value that is not finite is left out, so one bad step spoils none.

    Tags `<quantity>/<layer>` come out as `<quantity>_epoch/<layer>`.
    """

    def __init__(self, state: Sequence[Any] = ()) -> None:
        # for each set of tags (2, tags), float64: sums and numbers of the finite values
        self._totals: dict[tuple[str, ...], Tensor] = {tuple(tags): totals.clone() for tags, totals in state}

    def add(self, tags: tuple[str, ...], values: Tensor) -> None:
        """Take in K records, `values` (K, tags)."""
        totals = self._totals.setdefault(tags, torch.zeros(2, len(tags), dtype=torch.float64))
        finite = values.isfinite()
        totals[1] += finite.sum(0)
        for row in values.where(finite, 0):  # one by one: the sum is the same however the records are grouped
            totals[0] += row

    def __bool__(self) -> bool:
        return bool(self._totals)

    def pop(self) -> dict[str, float]:
        """The epoch's means; start the next epoch."""
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, float] = defaultdict(float)
        for tags, totals in self._totals.items():
            for tag, total, count in zip(tags, *totals.tolist(), strict=True):
                sums[tag] += total
                counts[tag] += count
        self._totals = {}
        return {epoch_tag(tag): total / counts[tag] for tag, total in sums.items() if counts[tag]}

    def state_dict(self) -> list[Any]:
        """What a new one needs to go on."""
        return [[list(tags), totals.clone()] for tags, totals in self._totals.items()]


def epoch_tag(tag: str) -> str:
    """`grad_rms/00_fc1` → `grad_rms_epoch/00_fc1`, `grad_depth_slope` → `grad_depth_slope_epoch`."""
    quantity, slash, layer = tag.partition("/")
    return f"{quantity}_epoch{slash}{layer}"
