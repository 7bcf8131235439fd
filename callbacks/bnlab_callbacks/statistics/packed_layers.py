"""Sums over small layers on a CPU: side by side in the rows of one buffer, so that a launch reaches all of them.

What statistics of small layers cost is launches, not arithmetic. `gradients.gradient_sums` is the slow
reference, layer by layer.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

# elements of the largest layer, and of the layers of one buffer: 1 MiB of float32, within a core's L2 cache
SMALL = 1 << 18
_WIDTH = 1024
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # what float32 holds exactly
# a layer's mean magnitude, so that no square that matters is 0 or infinite in float32
_MEAN, _SUM = 1e-15, 1e18


def can_pack(tensor: Tensor) -> bool:
    """Whether `tensor` is a small one on a CPU whose numbers float32 holds."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.dtype in _DTYPES
        and 0 < tensor.numel() <= SMALL
    )


class PackedLayers:
    """Some layers of given shapes; each starts a new row, and zeros fill its last one.

    Args:
        shapes: the layers' shapes.
    """

    def __init__(self, shapes: Sequence[torch.Size]) -> None:
        self._shapes = list(shapes)
        self._numel = [shape.numel() for shape in shapes]
        self._rows = [-(-numel // _WIDTH) for numel in self._numel]
        self._bounds = list(pairwise(accumulate(self._rows, initial=0)))
        self._now, self._before = (torch.zeros(sum(self._rows), _WIDTH) for _ in range(2))
        self._now_parts, self._before_parts = self._parts(self._now), self._parts(self._before)

    def _parts(self, buffer: Tensor) -> list[Tensor]:
        flat = buffer.view(-1)
        places = zip(self._bounds, self._numel, self._shapes, strict=True)
        return [flat[start * _WIDTH : start * _WIDTH + numel].view(shape) for (start, _), numel, shape in places]

    def sums(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """Sums of each row, each (rows,), for `join_sums`: magnitudes, values, 2-norms, elements that are not 0.

        None where they would not be exact: a layer's values are not all finite, or float32 cannot square them.
        """
        torch._foreach_copy_(self._now_parts, list(tensors))
        now = self._now  # changed in place: with a second buffer the passes would not stay in the cache
        signed, norms = now.sum(1), torch.linalg.vector_norm(now, 2, dim=1)
        magnitudes = now.abs_().sum(1)
        by_row = magnitudes.tolist()
        for (start, end), numel in zip(self._bounds, self._numel, strict=True):
            total = sum(by_row[start:end])
            if not (_MEAN * numel < total < _SUM or total == 0):
                return None
        return magnitudes, signed, norms, now.sign_().sum(1)

    def remember(self, weights: Sequence[Tensor]) -> None:
        """Keep the weights as they are before a step, for `moved`."""
        torch._foreach_copy_(self._before_parts, list(weights))

    @property
    def remembered(self) -> list[Tensor]:
        """The weights as they were at `remember`, in their shapes."""
        return self._before_parts

    def moved(self, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """2-norms of each row, each (rows,), for `join_squares`: of the change since `remember`, of the weights."""
        torch._foreach_copy_(self._now_parts, list(weights))
        change = torch.linalg.vector_norm(self._now.sub_(self._before), 2, dim=1)
        return change, torch.linalg.vector_norm(self._before, 2, dim=1)

    def join_sums(self, steps: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """The `sums` of K steps → (K, layers, 6), float64: ‖g‖₁, Σg, ‖g‖₂, zeros, finite elements, elements."""
        wide = _stack(steps)
        wide[:, 2].square_()
        magnitude, signed, square, nonzeros = self._join(wide).unbind(1)
        numel = torch.tensor(self._numel, dtype=torch.float64).expand_as(nonzeros)
        return torch.stack([magnitude, signed, square.sqrt(), numel - nonzeros, numel, numel], 2)

    def join_squares(self, steps: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """The norms of K steps as of `moved` → (K, layers, 2), float64: ‖Δw‖₂² and ‖w‖₂²."""
        return self._join(_stack(steps).square_()).transpose(1, 2)

    def _join(self, rows: Tensor) -> Tensor:
        return torch.stack([rows[..., start:end].sum(-1) for start, end in self._bounds], -1)


def _stack(steps: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """(K, fields, rows) in float64, of K steps' fields (rows,)."""
    fields = len(steps[0])
    stacked = torch.stack([field for step in steps for field in step]).double()
    return stacked.view(len(steps), fields, -1)
