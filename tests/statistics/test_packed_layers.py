"""Packed layers against the way for a layer by itself, and against plain float64 NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bnlab_callbacks.statistics.packed_layers import SMALL, PackedLayers, can_pack
from tests.statistics.test_gradients import assert_equals_reference, published

SHAPES = [torch.Size(shape) for shape in ((3, 5), (1, 1), (1024, 2), (7, 3, 3, 3), (100, 1024), (1, 1025))]


def packed_sums(*grads: Tensor) -> list[dict[str, float]] | None:
    packed = PackedLayers([grad.shape for grad in grads])
    sums = packed.sums(grads)
    if sums is None:
        return None
    joined = packed.join_sums([sums])
    return [published(joined[:, [index]], grad.numel()) for index, grad in enumerate(grads)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums_equal_numpy_for_every_shape_and_dtype(dtype: torch.dtype) -> None:
    grads = [torch.randn(shape).mul_(10.0**-index).to(dtype) for index, shape in enumerate(SHAPES)]
    for grad in grads[2:]:
        grad.view(-1)[::3] = 0
    found = packed_sums(*grads)
    assert found is not None
    for actual, grad in zip(found, grads, strict=True):
        assert_equals_reference(actual, grad)


def test_layers_that_are_not_dense_are_right() -> None:
    last = torch.randn(8, 5, 3, 3).to(memory_format=torch.channels_last)
    transposed = torch.randn(6, 10)[:, ::3].t()
    for actual, grad in zip(packed_sums(last, transposed) or [], (last, transposed), strict=True):
        assert_equals_reference(actual, grad)


def test_steps_are_joined_in_their_order_and_buffers_used_again() -> None:
    packed = PackedLayers([torch.Size((2, 3)), torch.Size((2000, 1))])
    steps = [[torch.randn(2, 3), torch.randn(2000, 1)] for _ in range(3)]
    joined = packed.join_sums([sums for grads in steps if (sums := packed.sums(grads))])
    assert joined.shape == (3, 2, 6)
    for row, grads in zip(joined, steps, strict=True):
        for layer, grad in enumerate(grads):
            assert_equals_reference(published(row[None, [layer]], grad.numel()), grad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e19, 1e-17])
def test_what_float32_cannot_square_is_left_to_the_exact_way(bad: float) -> None:
    assert packed_sums(torch.ones(3, 4), torch.full((5, 2), bad)) is None


@pytest.mark.parametrize("magnitude", [1e-14, 1e-8, 1e8, 1e13])
def test_sums_are_right_up_to_there(magnitude: float) -> None:
    grads = (torch.randn(100, 30) * magnitude, torch.zeros(4, 4), torch.randn(5, 5))
    found = packed_sums(*grads)
    assert found is not None
    for actual, grad in zip(found, grads, strict=True):
        assert_equals_reference(actual, grad)


def test_a_dead_units_weights_among_others_are_counted_as_zeros() -> None:
    grad = torch.randn(100, 1024)
    grad[17] = 0
    (actual,) = packed_sums(grad) or []
    assert actual["grad_zero_frac"] == 1 / 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_moves_equal_numpy(dtype: torch.dtype) -> None:
    packed = PackedLayers(SHAPES)
    before = [torch.randn(shape).to(dtype) for shape in SHAPES]
    after = [weight + torch.randn_like(weight) / 8 for weight in before]
    packed.remember(before)
    packed.sums(after)  # what happens in between does not matter
    packed.remember(before)
    squares = packed.join_squares([packed.moved(after), packed.moved(before)])
    assert squares.shape == (2, len(SHAPES), 2)
    for (change, size), b, a in zip(squares[0].tolist(), before, after, strict=True):
        old, new = b.double().numpy(), a.double().numpy()
        assert change == pytest.approx(np.square(new - old).sum(), rel=1e-5)
        assert size == pytest.approx(np.square(old).sum(), rel=1e-5)
    assert squares[1, :, 0].tolist() == [0.0] * len(SHAPES)


def test_the_gradient_itself_is_not_touched() -> None:
    """It may be a view of a bucket that ranks reduce."""
    grad = torch.randn(7, 9)
    before = grad.clone()
    packed_sums(grad)
    assert torch.equal(grad, before)


def test_which_layers_are_packed() -> None:
    assert can_pack(torch.ones(3))
    assert can_pack(torch.ones(3, dtype=torch.float16))
    assert can_pack(torch.ones(SMALL))
    assert not can_pack(torch.ones(SMALL + 1))
    assert not can_pack(torch.ones(0))
    assert not can_pack(torch.ones(3, dtype=torch.float64))
    assert not can_pack(torch.ones(3, dtype=torch.complex64))
    assert not can_pack(torch.ones(3, device="meta"))
    assert not can_pack(torch.ones(3, 2).to_sparse())
