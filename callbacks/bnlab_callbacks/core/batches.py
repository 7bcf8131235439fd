"""Batches of a training loop, of whatever kind."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def batch_length(batch: Any) -> int:
    """Samples in a batch: the length of the first tensor in it, however it is nested; 0 where there is none.

    Of a batch of PyG's its graphs.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    if isinstance(batch, list | tuple):  # most batches: asked first
        items: Any = batch
    elif isinstance(batch, str | bytes):
        return 0
    elif isinstance(graphs := getattr(batch, "num_graphs", None), int):
        return graphs
    else:
        items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, Sequence) else ()
    return next((length for item in items if (length := batch_length(item))), 0)
