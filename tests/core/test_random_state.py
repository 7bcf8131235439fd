"""Random generators, put back where they were."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from bnlab_callbacks import RandomState


def draws() -> list[float]:
    """From every generator; the normal ones keep a second number for the next call."""
    of_numpy = [np.random.random(), np.random.standard_normal()]
    return [torch.rand(()).item(), torch.randn(17).sum().item(), *of_numpy, random.random(), random.gauss(0, 1)]


@pytest.fixture(autouse=True)
def generators_are_given_back() -> object:
    before = random.getstate(), np.random.get_state()
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_the_same_numbers_come_again_after_a_checkpoint(calls: int, tmp_path: Path) -> None:
    for _ in range(calls):
        draws()
    torch.save(RandomState().state_dict(), tmp_path / "state")
    expected = [draws() for _ in range(3)]
    draws()
    RandomState.from_state_dict(torch.load(tmp_path / "state", weights_only=True)).restore()
    assert [draws() for _ in range(3)] == expected


def test_taking_the_state_draws_nothing() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    RandomState().state_dict()
    assert torch.equal(torch.rand(3), expected)
