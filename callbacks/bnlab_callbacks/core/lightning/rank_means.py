"""Means over ranks of a recorded step's values, whatever becomes of a rank: one collective a step, on all ranks."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.core.lightning.names import Trainer
from bnlab_callbacks.core.lightning.scalars import gather_ranks, pack, widest

# what a rank sends in place of its tags' check sum when it has nothing to compare
_TOO_LONG, _FAILED = -1, -2


class Gathered(NamedTuple):
    """A step's values on their device: one per tag, or with several ranks a row per rank, check sum first."""

    tags: list[str]
    values: list[Tensor]  # 0-dimensional
    ranks: int  # 0 where there are no others
    failed: bool


class Averaged(NamedTuple):
    """A step's values on the host; empty where a rank failed or had other tags."""

    values: dict[str, float]
    failed: bool = False
    different: bool = False


class RankMeans:
    """Collects the values of one kind of recorded step from all ranks."""

    def __init__(self) -> None:
        self._width = 0

    def gather(self, trainer: Trainer, tags: list[str], values: list[Tensor], failed: bool) -> Gathered:
        """Exchange what each rank has; a rank that failed must call it as well, or the others would hang.

        Args:
            trainer: the Trainer.
            tags: this rank's tags, one per value; the same tag may stand several times.
            values: 0-dimensional tensors.
            failed: whether the diagnostic failed on this rank.
        """
        if trainer.world_size == 1:
            return Gathered(tags, values, 0, failed)
        device = trainer.strategy.root_device
        vector = pack(values)[0].to(device) if values else torch.zeros(0, dtype=widest(device), device=device)
        if not self._width:  # agreed upon once: an exchange of vectors of different lengths would hang
            self._width = int(gather_ranks(trainer, torch.tensor([len(values)], device=device)).max())
        message = torch.full((self._width + 1,), float(_TOO_LONG), dtype=vector.dtype, device=device)
        if len(values) <= self._width:
            message[0] = _FAILED if failed else _check_sum(tags)
            message[1 : len(values) + 1] = vector
        ranks = gather_ranks(trainer, message)
        return Gathered(tags, list(ranks.flatten().unbind()), len(ranks), failed)


def average(gathered: Gathered, numbers: Sequence[float]) -> Averaged:
    """Means over ranks and over a tag's repetitions; `numbers` are the values of `gathered.values`."""
    if not gathered.ranks:
        return Averaged({}, failed=True) if gathered.failed else Averaged(_means(gathered.tags, [numbers]))
    width = len(numbers) // gathered.ranks
    rows = [numbers[rank * width : (rank + 1) * width] for rank in range(gathered.ranks)]
    sums = {row[0] for row in rows}
    if _FAILED in sums:
        return Averaged({}, failed=True)
    if len(sums) > 1 or _TOO_LONG in sums:
        return Averaged({}, different=True)
    return Averaged(_means(gathered.tags, [row[1:] for row in rows]))


def _means(tags: list[str], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for tag, value in zip(tags, row, strict=False):  # a row may be longer than this step's tags
            found[tag].append(value)
    return {tag: sum(values) / len(values) for tag, values in found.items()}


def _check_sum(tags: list[str]) -> int:
    """Small enough to be exact in float32."""
    return zlib.crc32("\n".join(tags).encode()) % 2**23
