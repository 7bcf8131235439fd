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
    """Buffers that are used again and again, one for each use, device and dtype, at most a piece long."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def get(self, use: str, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised vector of so many elements, until the next call with the same use, dtype and device."""
        key = (use, device, dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < numel:
            buffer = self._buffers[key] = torch.empty(numel, dtype=dtype, device=device)
        return buffer if buffer.numel() == numel else buffer[:numel]

    def values(self, like: Tensor) -> Tensor:
        """A vector as long as `like`, on its device, in the dtype of statistics."""
        return self.get("values", like.numel(), wide_dtype(like), like.device)

    def flags(self, like: Tensor) -> Tensor:
        """A second one, for comparisons: 1.0 and 0.0, since on CPUs truth values take twice as long."""
        return self.get("flags", like.numel(), wide_dtype(like), like.device)

    def clear(self) -> None:
        """Give the memory back."""
        self._buffers.clear()


def total(parts: list[Tensor]) -> Tensor:
    """Sum of 0-dimensional tensors, one per piece."""
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def total_count(parts: list[Tensor]) -> Tensor:
    """Sum of whole numbers, one per piece, as an integer: a piece's own is exact in float32, the sum might not be."""
    return parts[0].to(torch.int64) if len(parts) == 1 else torch.stack(parts).sum(dtype=torch.int64)
