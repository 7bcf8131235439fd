"""Norms of weight matrices: Frobenius norm, spectral norm by power iteration, stable rank. Pure functions."""

from typing import NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.statistics.chunks import wide_dtype

# power iterations of a matrix that is seen for the first time, and of one whose vector is known
COLD, WARM = 32, 4


class Norms(NamedTuple):
    """Norms of a matrix W (M, N), 0-dimensional, and where the power iteration stands."""

    frobenius: Tensor  # ‖W‖_F = √Σw²
    spectral: Tensor  # ‖W‖₂, its largest singular value
    vector: Tensor  # (M,): the left singular vector of it

    @property
    def stable_rank(self) -> Tensor:
        """‖W‖_F² / ‖W‖₂²: 1 where one direction is all, up to min(M, N) where all weigh alike."""
        return (self.frobenius / self.spectral).square()


def as_matrix(weight: Tensor) -> Tensor:
    """(M, …) → (M, N), in float32 or wider: outputs against all else, as `torch.nn.utils.spectral_norm` has it."""
    return weight.detach().flatten(1).to(wide_dtype(weight))


def norms(matrix: Tensor, vector: Tensor | None) -> Norms:
    """Norms of a matrix, the spectral one from below: each iteration comes nearer, by (σ₂/σ₁)² of what is left.

    Args:
        matrix: (M, N).
        vector: (M,), what the last call left for this matrix as it was then; None for the first call.
    """
    iterations = COLD if vector is None else WARM
    u = _start(matrix) if vector is None else vector
    spectral = matrix.new_zeros(())
    for _ in range(iterations):
        v = _normalized(matrix.mT @ u)
        image = matrix @ v
        spectral = torch.linalg.vector_norm(image)
        # of a matrix of zeros, or one that is not finite, the vector is kept: such a matrix may pass
        u = torch.where(spectral.isfinite() & (spectral > 0), image / spectral, u)
    return Norms(torch.linalg.vector_norm(matrix), spectral, u)


def _start(matrix: Tensor) -> Tensor:
    """A random direction, always the same, which takes nothing from the run's random numbers."""
    generator = torch.Generator().manual_seed(0)
    return _normalized(torch.randn(matrix.shape[0], generator=generator).to(matrix))


def _normalized(vector: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vector)
    return vector / length.clamp_min(torch.finfo(vector.dtype).tiny)
