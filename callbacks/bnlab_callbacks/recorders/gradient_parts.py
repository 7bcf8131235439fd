"""What one recorded optimizer step left of some layers, until it is read together with other steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.core.device import Change
from bnlab_callbacks.core.weights import Weight
from bnlab_callbacks.statistics.packed_layers import PackedLayers


class Part(NamedTuple):
    """What one optimizer step left to be published for some small layers packed together, or for one other layer."""

    weights: tuple[Weight, ...]
    scale: float
    packed: PackedLayers | None
    sums: tuple[Any, ...]  # `PackedLayers.sums`, or the six that `gradient_statistics` takes
    moved: tuple[Any, ...] = ()  # `PackedLayers.moved`, or `update_norms`; nothing until the step was made

    @property
    def key(self) -> tuple[int, ...]:
        """The same for parts of different steps that can be computed together."""
        return (id(self.packed), len(self.moved), *map(id, self.weights))

    def change_tensors(self, change: Change) -> Part:
        """The same with other tensors, unless they are rows of a buffer on the host."""
        if self.packed is not None:
            return self
        sums, moved = (
            tuple(change(value) if isinstance(value, Tensor) else value for value in values)
            for values in (self.sums, self.moved)
        )
        return self._replace(sums=sums, moved=moved)


def joined_sums(same: Sequence[Part]) -> Tensor:
    """(K, layers, 6) of the same part of K steps."""
    if same[0].packed:
        return same[0].packed.join_sums([part.sums for part in same])
    return torch.tensor([[part.sums] for part in same], dtype=torch.float64)


def joined_moves(same: Sequence[Part]) -> Tensor:
    """(K, layers, 2) of the same part of K steps."""
    if same[0].packed:
        return same[0].packed.join_squares([part.moved for part in same])
    return torch.tensor([[part.moved] for part in same], dtype=torch.float64)
