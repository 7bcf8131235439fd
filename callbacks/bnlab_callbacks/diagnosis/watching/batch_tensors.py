"""The tensors of a batch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

_DEPTH = 3  # of attributes within attributes


def tensors_of(batch: Any, deep: bool = False) -> Iterator[Tensor]:
    """All tensors of a batch, in order; with `deep` also those that are attributes of other objects."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value, deep)
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        for value in batch:
            yield from tensors_of(value, deep)
    elif deep:
        yield from _attributes(batch, _DEPTH)


def _attributes(owner: Any, depth: int) -> Iterator[Tensor]:
    """Tensors within an object of any class, as graphs' and molecules' batches are."""
    inside = owner.values() if isinstance(owner, Mapping) else getattr(owner, "__dict__", {}).values()
    for value in list(inside):
        if isinstance(value, Tensor | list | tuple):
            yield from tensors_of(value)
        elif depth:
            yield from _attributes(value, depth - 1)


def samples_of_vectors(batch: Any) -> int | None:
    """Samples of a batch of vectors: the largest first dimension of its tensors, or number of integers.

    Whole numbers may be words of one text. None without a tensor, and where one has three dimensions or more: a picture
    or a series has many values that a loss is a mean over, and batches of one are usual.
    """
    tensors = [tensor for tensor in tensors_of(batch) if tensor.ndim]
    if any(tensor.ndim > 2 for tensor in tensors):
        return None
    whole = (one.numel() for one in tensors if not one.is_floating_point() and not one.is_complex())
    return max([*(one.shape[0] for one in tensors), *whole], default=None)
