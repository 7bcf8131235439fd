"""The ranks of a run, and the exchange of tensors among them."""

import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from bnlab_callbacks.core.device import widest

# in place of the check sum of a message: why there is none
_TOO_LONG, _FAILED = -1, -2


class Ranks:
    """The processes that train copies of one model together, seen from one of them.

    Args:
        size: their number.
        device: where tensors must lie to be exchanged.
        all_gather: an exchange of the strategy's own, for runs without `torch.distributed` (XLA).
    """

    def __init__(
        self,
        size: int = 1,
        device: torch.device | str = "cpu",
        all_gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.size = size
        self.device = torch.device(device)
        self._all_gather = all_gather

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensor of every rank, (ranks, *shape), without gradients; all ranks must call it."""
        if self.size == 1:
            return tensor.unsqueeze(0)
        if self._all_gather is not None:
            return self._all_gather(tensor)
        # not Lightning's all_gather: it goes through functions that torch 2.15 deprecates
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor)
        return torch.stack(parts)


def check_sum(described: str) -> int:
    """Of a description that must be equal on all ranks; small enough to be exact in float32."""
    return zlib.crc32(described.encode()) % 2**23


Agreement = Literal["agreed", "failed", "different"]


class Messages:
    """Exchanges one vector a rank, step by step, all in messages of one length: others would hang.

    The length is that of the longest vector of the first exchange; a longer one is not sent.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._width = 0

    def exchange(self, vector: Tensor, described: str, failed: bool) -> Tensor:
        """The messages of all ranks, (ranks, 1 + length): a check sum and the vector; all ranks must call it.

        Args:
            vector: (n,), what this rank has; empty if it failed.
            described: its layout, which must be the same on all ranks for the vectors to be compared.
            failed: whether there is nothing to compare. Such a rank must call this as well, or the others would hang.
        """
        device = self._ranks.device
        vector = vector.to(device, widest(device))
        if not self._width:
            self._width = int(self._ranks.gather(torch.tensor([len(vector)], device=device)).max())
        message = vector.new_full((self._width + 1,), float(_TOO_LONG))
        if len(vector) <= self._width:
            message[0] = _FAILED if failed else check_sum(described)
            message[1 : len(vector) + 1] = vector
        return self._ranks.gather(message)


def agreement(heads: Sequence[float]) -> Agreement:
    """Whether messages with these check sums, one a rank, can be compared; the same on all ranks."""
    if _FAILED in heads:
        return "failed"
    return "different" if len(set(heads)) > 1 or _TOO_LONG in heads else "agreed"
