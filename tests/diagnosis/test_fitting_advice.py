"""Advice that fits a net: nothing that it has is proposed."""

import math

import pytest
from torch import nn

from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.fitting_advice import fitting, is_kaiming
from bnlab_callbacks.diagnosis.watching.parts import inputs_of_units, parts_of


@pytest.mark.parametrize(
    ("key", "has", "left"),
    [
        ("better_init", set(), ["better_init"]),
        ("better_init", {"norm"}, ["own_init"]),
        ("better_init", {"own_init"}, ["batch_norm"]),
        ("better_init", {"norm", "own_init"}, []),
        ("batch_norm", {"norm"}, []),
        ("check_inputs_or_better_init", {"norm", "own_init"}, ["check_inputs"]),
        ("a_tenth_of_the_learning_rate_or_better_init", {"own_init"}, ["a_tenth_of_the_learning_rate"]),
        ("unsaturated_activation_or_skips", {"unsaturated"}, ["skips"]),
        ("zero_biases_or_leaky_activation", {"leaky"}, ["zero_biases"]),
        ("lower_learning_rate_or_clip", {"clip"}, ["lower_learning_rate"]),
    ],
)
def test_what_is_left_of_an_advice(key: str, has: set[str], left: list[str]) -> None:
    assert fitting(advice(key), has) == advice(*left)


def test_two_advices_of_which_the_same_is_left_are_one() -> None:
    assert fitting(advice("better_init", "batch_norm"), {"own_init"}) == advice("batch_norm")


def test_parts_of_a_net() -> None:
    assert parts_of(nn.Sequential(nn.Linear(2, 2), nn.Tanh())) == frozenset()
    assert parts_of(nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())) == {"norm", "unsaturated"}
    assert parts_of(nn.Sequential(nn.LayerNorm(2), nn.GELU())) == {"norm", "unsaturated", "leaky"}


def test_he_s_initialization_is_known_by_its_scale() -> None:
    net = nn.Sequential(nn.Linear(50, 20), nn.ReLU(), nn.Conv2d(3, 8, 3))
    assert inputs_of_units(net) == {"0": 50, "2": 27}
    he = {"0": math.sqrt(2 / 50), "2": math.sqrt(2 / 27)}
    assert is_kaiming(he, {"0": 50, "2": 27})
    assert not is_kaiming({"0": 1 / math.sqrt(150), "2": 1 / math.sqrt(81)}, {"0": 50, "2": 27})  # PyTorch's own
    assert not is_kaiming({}, {"0": 50})
