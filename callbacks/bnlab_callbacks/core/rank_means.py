"""Means over ranks of a recorded step's named values, through one exchange a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.core.device import pack
from bnlab_callbacks.core.ranks import Agreement, Messages, Ranks, agreement


class Gathered(NamedTuple):
    """A step's values on their device: one for each name, or with several ranks a message of each."""

    names: list[str]
    values: list[Tensor]  # 0-dimensional; with several ranks (ranks × length) of them
    ranks: int  # 0 where there are no others
    failed: bool

    def change_tensors(self, change: Callable[[Tensor], Tensor]) -> Gathered:
        """The same with other tensors."""
        return self._replace(values=[change(value) for value in self.values])


class Averaged(NamedTuple):
    """A step's values on the host; empty unless all ranks agreed."""

    values: dict[str, float]
    agreement: Agreement


class RankMeans:
    """Collects the values of one kind of recorded step from all ranks."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._messages = Messages(ranks)

    def gather(self, names: list[str], values: list[Tensor], failed: bool) -> Gathered:
        """Exchange this rank's values with the others'; all must call it, also one that failed.

        Args:
            names: one for each value; the same name may stand several times.
            values: 0-dimensional tensors.
            failed: whether the diagnostic failed on this rank.
        """
        if self._ranks.size == 1:
            return Gathered(names, values, 0, failed)
        vector = pack(values)[0] if values else torch.zeros(0)
        ranks = self._messages.exchange(vector, "\n".join(names), failed)
        return Gathered(names, list(ranks.flatten().unbind()), len(ranks), failed)


def average(gathered: Gathered, numbers: Sequence[float]) -> Averaged:
    """Means over ranks and over a name's repetitions; `numbers` are the values of `gathered.values`."""
    if not gathered.ranks:
        return Averaged({}, "failed") if gathered.failed else Averaged(_means(gathered.names, [numbers]), "agreed")
    width = len(numbers) // gathered.ranks
    rows = [numbers[rank * width : (rank + 1) * width] for rank in range(gathered.ranks)]
    found = agreement([row[0] for row in rows])
    return Averaged(_means(gathered.names, [row[1:] for row in rows]) if found == "agreed" else {}, found)


def _means(names: list[str], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in zip(names, row, strict=False):  # a row may be longer than this step's names
            found[name].append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}
