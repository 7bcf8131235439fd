"""Norms of matrices against their singular values in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from bnlab_callbacks.statistics.spectra import as_matrix, norms


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 7), (7, 1), (4, 3, 2, 2)], ids=str)
def test_norms_equal_those_of_the_singular_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = random(*shape).to(dtype)
    values = torch.linalg.svdvals(weight.double().flatten(1))
    found = norms(as_matrix(weight), None)
    assert float(found.frobenius) == pytest.approx(float(values.square().sum().sqrt()), rel=1e-6)
    assert float(found.spectral) == pytest.approx(float(values[0]), rel=2e-3)
    assert float(found.spectral) <= float(values[0]) * (1 + 1e-6)
    assert float(found.stable_rank) == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=4e-3)


def test_each_record_comes_nearer_also_while_the_matrix_changes() -> None:
    matrix = random(512, 512)
    errors, vector = [], None
    for step in range(12):
        found = norms(matrix, vector)
        vector = found.vector
        errors.append(1 - float(found.spectral / torch.linalg.matrix_norm(matrix, 2)))
        matrix = matrix + 1e-3 * random(512, 512, seed=step + 1)
    assert 0 < errors[0] < 0.03
    assert -1e-5 < errors[-1] < errors[0] / 2


def test_a_known_spectrum() -> None:
    left, right = (torch.linalg.qr(random(8, 8, seed=seed))[0] for seed in (1, 2))
    matrix = left @ torch.diag(torch.tensor([4.0, 2, 2, 1, 0, 0, 0, 0])) @ right
    found = norms(matrix, None)
    assert [float(found.spectral), float(found.frobenius), float(found.stable_rank)] == pytest.approx([4, 5, 25 / 16])
    assert abs(float(found.vector @ left[:, 0])) == pytest.approx(1, abs=1e-5)


def test_zeros_and_what_is_not_finite_pass() -> None:
    """As in LoRA, whose second matrix begins at 0: the vector must not become 0 for good."""
    first = norms(torch.zeros(4, 3), None)
    assert [float(first.spectral), float(first.frobenius)] == [0, 0]
    assert math.isnan(float(first.stable_rank))
    broken = norms(torch.full((4, 3), math.nan), first.vector)
    assert math.isnan(float(broken.spectral))
    matrix, vector = random(4, 3), broken.vector
    for _ in range(10):
        found = norms(matrix, vector)
        vector = found.vector
    assert float(found.spectral) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-5)


def test_a_convolution_is_outputs_against_all_else() -> None:
    assert as_matrix(nn.Conv2d(3, 8, 5).weight).shape == (8, 75)
