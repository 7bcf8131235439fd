"""Passes over large tensors in pieces that stay in the cache, through buffers that are allocated once."""

import torch
from torch import Tensor

# elements a piece: 1 MiB of float32, within a core's L2 cache; accelerators want long kernels instead. Not above 2^24:
# counts within a piece are summed in float32
_CPU_CHUNK = 1 << 18
_ACCELERATOR_CHUNK = 1 << 24


def flat(x: Tensor) -> Tensor:
    """All elements of `x` as one dimension, in memory order, without a copy where the layout is dense."""
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    elif x.ndim == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d):
        x = x.permute(0, 2, 3, 4, 1)
    return x.reshape(-1)


def wide_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64: what statistics of `x` are computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def pieces(x: Tensor) -> tuple[Tensor, ...]:
    """The flat tensor `x` in pieces of cache size."""
    size = _CPU_CHUNK if x.device.type == "cpu" else _ACCELERATOR_CHUNK
    return (x,) if x.numel() <= size else torch.split(x, size)


class Scratch:
    """Two reusable buffers per device and dtype, for values and for comparisons, at most a piece long."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def _get(self, use: str, like: Tensor) -> Tensor:
        key = (use, like.device, wide_dtype(like))
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < like.numel():
            buffer = self._buffers[key] = torch.empty(like.numel(), dtype=wide_dtype(like), device=like.device)
        return buffer if buffer.numel() == like.numel() else buffer[: like.numel()]

    def values(self, like: Tensor) -> Tensor:
        """An uninitialised vector as long as `like`, on its device, in the dtype of statistics; until the next call."""
        return self._get("values", like)

    def flags(self, like: Tensor) -> Tensor:
        """A second one, for comparisons: 1.0 and 0.0, since on CPUs truth values take twice as long."""
        return self._get("flags", like)

    def clear(self) -> None:
        """Give the memory back."""
        self._buffers.clear()


def total(parts: list[Tensor]) -> Tensor:
    """Sum of 0-dimensional tensors, one per piece."""
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def total_count(parts: list[Tensor]) -> Tensor:
    """Sum of whole numbers, one per piece, as an integer: a piece's own is exact in float32, the sum might not be."""
    return parts[0].to(torch.int64) if len(parts) == 1 else torch.stack(parts).sum(dtype=torch.int64)
