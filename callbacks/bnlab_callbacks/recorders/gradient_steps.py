"""What recorded optimizer steps left, part by part, until it is read."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from bnlab_callbacks.core.device import Change
from bnlab_callbacks.core.weights import Weight
from bnlab_callbacks.statistics.packed_layers import PackedLayers


class Part(NamedTuple):
    """What one optimizer step left of some small layers packed together, or of one other layer."""

    weights: tuple[Weight, ...]
    scale: float
    packed: PackedLayers | None
    sums: tuple[Any, ...]  # `PackedLayers.sums`, or the six that `gradient_statistics` takes
    moved: tuple[Any, ...] = ()  # `PackedLayers.moved`, or `update_norms`; nothing until the step was made
    changed: tuple[Any, ...] = ()  # `changed_share` of each layer; nothing where it was not wanted or is not known

    @property
    def key(self) -> tuple[int, ...]:
        """The same for parts of different steps that can be computed together."""
        return (id(self.packed), len(self.moved), len(self.changed), *map(id, self.weights))

    def change_tensors(self, change: Change) -> Part:
        """The same with other tensors, unless they are rows of a buffer on the host."""
        if self.packed is not None:
            return self
        sums, moved, changed = (
            tuple(change(value) if isinstance(value, Tensor) else value for value in values)
            for values in (self.sums, self.moved, self.changed)
        )
        return self._replace(sums=sums, moved=moved, changed=changed)


class GradientStep(NamedTuple):
    """A recorded step.

    Attributes:
        parts: what was recorded.
        numbered: all layers, and vectors if any reader wants them → `<NN>_<layer>`.
        trained: the layers that were trained so far, in order of execution.
        vectors: those of `numbered` that are no layers' weights.
    """

    parts: list[Part]
    numbered: dict[str, str]
    trained: tuple[str, ...]
    vectors: frozenset[str]

    def change_tensors(self, change: Change) -> GradientStep:
        """The same with other tensors; small layers that were packed are on the host."""
        return self._replace(parts=[part.change_tensors(change) for part in self.parts])
