"""The effective rank against its definition in NumPy."""

import math

import numpy as np
import pytest
import torch

from bnlab_callbacks.statistics.effective_rank import effective_rank


def by_definition(matrix: torch.Tensor) -> float:
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    return float(np.exp(-sum(p * np.log(p) for p in shares if p > 1e-12)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "unit_dim"), [((20, 7), 1), ((5, 30), 1), ((4, 6, 5), -1), ((4, 6, 5), 1), ((3, 8, 4, 4), 1)], ids=str
)
def test_it_equals_the_definition(shape: tuple[int, ...], unit_dim: int, dtype: torch.dtype) -> None:
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    matrix = outputs.movedim(unit_dim, -1).reshape(-1, shape[unit_dim])
    assert float(effective_rank(outputs, unit_dim)) == pytest.approx(by_definition(matrix), rel=1e-5)


def test_known_ranks() -> None:
    assert float(effective_rank(torch.eye(6) * 3, 1)) == pytest.approx(6)
    assert float(effective_rank(torch.outer(torch.rand(9), torch.rand(5)), 1)) == pytest.approx(1, abs=1e-4)
    assert float(effective_rank(torch.tensor([3.0, 4.0]), 0)) == 1


def test_of_many_rows_256_are_looked_at_evenly() -> None:
    """Every tenth row has another direction; the rest would hide it if the first rows alone were taken."""
    outputs = torch.zeros(25_600, 2)
    outputs[:, 0] = 1
    outputs[12_800:] = torch.tensor([0.0, 1.0])
    assert float(effective_rank(outputs, 1)) == pytest.approx(2)


def test_zeros_and_what_is_not_finite_are_nan() -> None:
    for value in (0.0, math.nan, math.inf):
        assert math.isnan(float(effective_rank(torch.full((4, 3), value), 1)))
