"""Dormant units against the paper's definition, by hand."""

import math

import torch

from bnlab_callbacks.statistics.dormant_units import dormant_units


def test_units_up_to_a_fortieth_of_the_mean_are_dormant() -> None:
    """Means 40, 40.0001 and 0: of the second layer the first unit is just above τ."""
    magnitudes = torch.tensor([[1.0, 79.0], [1.0, 79.0], [0.0, 0.0]], dtype=torch.float64)
    magnitudes[1] -= torch.tensor([0.0, 1e-3])
    assert dormant_units(magnitudes).tolist() == [[True, False], [False, False], [True, True]]


def test_one_layer() -> None:
    assert dormant_units(torch.tensor([3.0, 0.01, 5.0])).tolist() == [False, True, False]
    assert dormant_units(torch.tensor([3.0])).tolist() == [False]


def test_a_layer_that_is_not_finite_has_none() -> None:
    assert not dormant_units(torch.tensor([[0.0, math.nan], [0.0, math.inf]])).any()
