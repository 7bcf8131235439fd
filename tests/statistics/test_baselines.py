"""Baselines against closed forms and values counted by hand."""

import math

import pytest
import torch

from bnlab_callbacks.statistics.baselines import (
    absolute_error_of_median,
    binary_entropy,
    entropy,
    merged,
    moments,
    r_squared,
    share_outside,
    spread,
)


def test_the_variance_is_the_squared_error_of_the_mean_column_by_column() -> None:
    targets = torch.tensor([[1.0, 10.0], [3.0, 10.0]])
    assert moments(targets).variance == 0.5  # (1 + 0) / 2
    assert moments(targets).mean.tolist() == [2.0, 10.0]


def test_moments_of_batches_are_those_of_all_though_the_mean_is_large() -> None:
    targets = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e4
    found = moments(targets[:1])
    for batch in (targets[1:40], targets[40:]):
        found = merged(found, moments(batch))
    assert found.number == 100
    assert found.variance == pytest.approx(float(targets.var(0, correction=0).mean()), rel=1e-9)
    assert torch.allclose(found.mean, targets.mean(0))


def test_entropies() -> None:
    assert float(entropy(torch.full((10,), 0.1))) == pytest.approx(math.log(10))
    assert float(entropy(torch.tensor([1.0, 0.0]))) == 0.0
    assert float(entropy(torch.tensor([0.25, 0.75]))) == pytest.approx(2 * math.log(2) - 0.75 * math.log(3))
    assert float(binary_entropy(torch.tensor([0.5, 1.0]))) == pytest.approx(math.log(2) / 2)
    assert float(binary_entropy(torch.tensor([1.5]))) == -math.inf


def test_the_median_s_absolute_error() -> None:
    assert float(absolute_error_of_median(torch.tensor([[0.0], [1.0], [11.0]]))) == pytest.approx(11 / 3)


def test_r_squared() -> None:
    targets = torch.tensor([[1.0], [3.0]])
    assert float(r_squared(targets, targets)) == 1.0
    # the variance of two targets is 2 with n − 1, and twice the squares are 4
    assert float(r_squared(torch.full((2, 1), 2.0), targets)) == pytest.approx(1 - 2 / 4)
    assert math.isnan(float(r_squared(targets, torch.ones(2, 1))))
    draws = torch.randn(4000, 4, 1, generator=torch.Generator().manual_seed(0))
    # in batches of four the true mean explains nothing on average: Σ squares ÷ corrected Σ squares about the mean
    left, around = draws.square().sum(), (draws - draws.mean(1, keepdim=True)).square().sum() * 4 / 3
    assert float(left / around) == pytest.approx(1.0, abs=0.02)


def test_spread_and_share_outside() -> None:
    assert float(spread(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))) == 0.5
    targets = torch.tensor([[-1.0], [0.0], [1.04], [1.06]])
    assert float(share_outside(targets, 0.0, 1.0)) == 0.75
    assert float(share_outside(targets, 0.0, 1.0, 0.05)) == 0.5
    assert float(share_outside(targets, 0.0, math.inf)) == 0.25
