"""What waits on a device comes to the host in one copy, whoever reads it, and as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bnlab_callbacks.core import device as device_values
from bnlab_callbacks.core.device import DeviceValues, bring_to_host


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tensors in each copy; all tensors count as being elsewhere until they were copied."""
    made: list[int] = []
    here: list[Tensor] = []
    copy = device_values.copy_to_host

    def counted(tensors: list[Tensor]) -> list[Tensor]:
        made.append(len(tensors))
        here.extend(copy(tensors))
        return here[-len(tensors) :]

    monkeypatch.setattr(device_values, "copy_to_host", counted)
    monkeypatch.setattr(device_values, "is_away", lambda tensor: all(tensor is not one for one in here))
    return made


def in_list(values: list[Any], change: Any) -> list[Any]:
    return [change(value) if isinstance(value, Tensor) else value for value in values]


def test_all_that_is_brought_together_is_one_copy_and_exact(copies: list[int]) -> None:
    whole = torch.tensor(2**53 - 1)
    first = DeviceValues([torch.tensor(0.1), 7, whole], in_list)
    second = DeviceValues([torch.arange(6.0).view(2, 3), torch.tensor(True), torch.tensor(1e-30).bfloat16()], in_list)
    bring_to_host([first, second])
    assert copies == [5]
    number, seven, count = first.value
    assert (float(number), seven, int(count)) == (float(torch.tensor(0.1)), 7, 2**53 - 1)
    matrix, flag, small = second.value
    assert torch.equal(matrix, torch.arange(6.0, dtype=torch.float64).view(2, 3))
    assert (float(flag), float(small)) == (1.0, float(torch.tensor(1e-30).bfloat16()))


def test_what_several_hold_is_copied_once(copies: list[int]) -> None:
    tensor = torch.tensor(3.0)
    shared, other = DeviceValues([tensor], in_list), DeviceValues([tensor, torch.tensor(4.0)], in_list)
    bring_to_host([shared, shared, other])
    assert copies == [2]  # and the same tensor in two places, too
    bring_to_host([shared])
    bring_to_host([])
    assert copies == [2]
    assert [float(value) for value in (*shared.value, *other.value)] == [3.0, 3.0, 4.0]


def test_what_is_on_the_host_stays_what_it_is() -> None:
    tensor = torch.tensor([1.0, 2.0])
    values = DeviceValues([tensor], in_list)
    bring_to_host([values])
    assert values.value[0] is tensor
    assert values.on_host
