"""Gradient sums and statistics against plain float64 NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab_callbacks.statistics.chunks import Scratch, flat
from bnlab_callbacks.statistics.gradients import (
    changed_share,
    depth_slope,
    gradient_statistics,
    gradient_sums,
    stored_values,
    update_norms,
    update_ratio,
)

PIECE = 2**18
EXACT = {"grad_zero_frac", "grad_nonfinite"}


def computed(grad: Tensor, numel: int | None = None, scale: float = 1.0) -> dict[str, float]:
    """Through the package's way for a layer by itself."""
    values = stored_values(grad)
    sums = [*(float(each) for each in gradient_sums(values, Scratch())), values.numel()]
    return published(torch.tensor([[sums]], dtype=torch.float64), numel or grad.numel(), scale)


def published(sums: Tensor, numel: int, scale: float = 1.0) -> dict[str, float]:
    statistics = gradient_statistics(sums, sums.new_tensor([numel]), sums.new_full((1, 1), scale))
    return {name: float(value) for name, value in statistics.items()}


def reference(grad: Tensor) -> dict[str, float]:
    """The definitions, written out slowly in float64."""
    g = grad.double().numpy().ravel()
    return {
        "grad_mean_abs": np.abs(g).sum() / g.size,
        "grad_mean": g.sum() / g.size,
        "grad_rms": np.sqrt((g**2).sum()) / np.sqrt(g.size),
        "grad_zero_frac": (g == 0).sum() / g.size,
        "grad_nonfinite": (~np.isfinite(g)).sum(),
    }


def assert_equals_reference(actual: dict[str, float], grad: Tensor) -> None:
    expected = reference(grad)
    assert actual.keys() == expected.keys()
    rounding = 1e-6 * expected["grad_mean_abs"]  # of a sum whose terms cancel
    for name, value in expected.items():
        if name in EXACT:
            assert actual[name] == value, name
        else:
            assert actual[name] == pytest.approx(value, rel=3e-6, abs=rounding if name == "grad_mean" else 0), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 3, 3, 3), (PIECE, 1), (PIECE + 1, 1), (2, PIECE + 7)], ids=str)
def test_sums_equal_numpy_for_every_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    grad = torch.randn(shape).to(dtype)
    grad.view(-1)[::3] = 0
    assert_equals_reference(computed(grad), grad)


def test_sums_of_channels_last_gradients_equal_numpy() -> None:
    grad = torch.randn(8, 5, 3, 3).to(memory_format=torch.channels_last)
    deep = torch.randn(4, 5, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    assert_equals_reference(computed(grad), grad)
    assert_equals_reference(computed(deep), deep)
    assert flat(grad).data_ptr() == grad.data_ptr()  # without a copy
    assert flat(deep).data_ptr() == deep.data_ptr()


def test_sums_of_a_strided_view_equal_numpy() -> None:
    grad = torch.randn(6, 10)[:, ::3].t()
    assert_equals_reference(computed(grad), grad)


@pytest.mark.parametrize("magnitude", [1e-40, 1e-34, 1e-20, 1e-8, 1e8, 1e20, 1e30])
def test_magnitudes_whose_squares_leave_float32_are_right(magnitude: float) -> None:
    grad = torch.randn(1000, 4) * magnitude
    actual, expected = computed(grad), reference(grad)
    tolerance = 1e-3 if magnitude < 1e-38 else 3e-6  # subnormal numbers have few digits
    assert actual["grad_rms"] == pytest.approx(expected["grad_rms"], rel=tolerance)
    assert actual["grad_mean_abs"] == pytest.approx(expected["grad_mean_abs"], rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_one_element_among_a_hundred_thousand_zeros_keeps_its_norm(dtype: torch.dtype) -> None:
    """100,000 times the mean: beyond float16."""
    grad = torch.zeros(100_000, 1, dtype=dtype)
    grad[7] = 2.0
    assert_equals_reference(computed(grad), grad)


def test_elements_far_apart_in_magnitude_keep_their_norm() -> None:
    grad = torch.tensor([[1e-30, 1e10, -1e-10, 1.0]])
    assert_equals_reference(computed(grad), grad)


def test_a_zero_gradient_gives_zeros_and_no_nan() -> None:
    assert computed(torch.zeros(3, 4)) == {
        "grad_mean_abs": 0.0,
        "grad_mean": 0.0,
        "grad_rms": 0.0,
        "grad_zero_frac": 1.0,
        "grad_nonfinite": 0.0,
    }


@pytest.mark.parametrize("numel", [10, PIECE + 10])
def test_nan_and_infinities_are_counted_exactly(numel: int) -> None:
    grad = torch.ones(numel, 1)
    grad[0], grad[3], grad[-1] = math.nan, math.inf, -math.inf
    grad[5] = 0
    actual = computed(grad)
    assert actual["grad_nonfinite"] == 3
    assert actual["grad_zero_frac"] == 1 / numel
    assert not math.isfinite(actual["grad_mean_abs"])
    assert not math.isfinite(actual["grad_rms"])


def test_a_sum_beyond_float32_of_finite_elements_is_not_called_nonfinite_elements() -> None:
    actual = computed(torch.full((10, 1), 3e38))
    assert actual["grad_nonfinite"] == 0
    assert actual["grad_rms"] == math.inf


def test_by_hand() -> None:
    actual = computed(torch.tensor([[3.0, -4.0, 0.0, 0.0]]))
    assert actual == {
        "grad_mean_abs": 1.75,
        "grad_mean": -0.25,
        "grad_rms": 2.5,
        "grad_zero_frac": 0.5,
        "grad_nonfinite": 0.0,
    }


def test_the_loss_scale_is_divided_out_but_of_no_count() -> None:
    actual = computed(torch.tensor([[3.0, -4.0, 0.0, math.nan]]).nan_to_num(0.0) * 1024, scale=1024.0)
    assert actual == computed(torch.tensor([[3.0, -4.0, 0.0, 0.0]]))


def test_signed_means_cancel_where_mean_magnitudes_do_not() -> None:
    """The mean of signs hides what the mean of magnitudes shows."""
    actual = computed(torch.tensor([[1.0, -1.0]]))
    assert (actual["grad_mean"], actual["grad_mean_abs"]) == (0.0, 1.0)


def test_sparse_gradients_equal_their_dense_form() -> None:
    embedding = nn.Embedding(50, 3, sparse=True)
    (embedding(torch.tensor([4, 7, 7, 9])) * torch.randn(4, 3)).sum().backward()
    grad = embedding.weight.grad
    assert grad is not None
    assert grad.is_sparse
    assert_equals_reference(computed(grad, embedding.weight.numel()), grad.to_dense())


def test_complex_gradients_count_as_their_two_real_parts() -> None:
    grad = torch.randn(5, 4, dtype=torch.complex64)
    assert_equals_reference(computed(grad, 2 * grad.numel()), torch.view_as_real(grad))


def test_the_gradient_itself_is_not_touched() -> None:
    """It may be a view of a bucket that ranks reduce."""
    grad = torch.randn(7, 9)
    before = grad.clone()
    computed(grad)
    assert torch.equal(grad, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("numel", [1, 5000, PIECE + 3])
def test_update_norms_equal_numpy(numel: int, dtype: torch.dtype) -> None:
    before, after = torch.randn(numel).to(dtype), torch.randn(numel).to(dtype)
    change, size = update_norms(before, after, Scratch())
    b, a = before.double().numpy(), after.double().numpy()
    assert float(change) == pytest.approx(((a - b) ** 2).sum(), rel=1e-5)
    assert float(size) == pytest.approx((b**2).sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "size", "ratio"),
    [
        (1e-8, 1e-2, -3.0),
        (1.0, 1.0, 0.0),
        (1e-300, 1e300, -300.0),  # their quotient underflows
        (0.0, 1.0, -math.inf),
        (1.0, 0.0, math.nan),
        (0.0, 0.0, math.nan),
        (math.nan, 1.0, math.nan),
        (1.0, math.nan, math.nan),
    ],
)
def test_update_ratio_by_hand(change: float, size: float, ratio: float) -> None:
    squares = torch.tensor([change, size], dtype=torch.float64)
    assert float(update_ratio(squares)) == pytest.approx(ratio, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("numel", [1, 5000, PIECE + 3])
def test_changed_share_equals_numpy(numel: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(numel)
    before = torch.randn(numel, generator=generator).to(dtype)
    gradient = torch.randn(numel, generator=generator) * (torch.rand(numel, generator=generator) < 0.9)
    gradient[0] = 1.0
    after = before - 0.002 * gradient.to(dtype)
    old, new, grad = (values.double().numpy() for values in (before, after, gradient))
    expected = np.mean((old != new)[grad != 0])
    assert float(changed_share(before, after, gradient.to(dtype))) == pytest.approx(expected, rel=1e-6)


def test_changed_share_by_hand() -> None:
    ones, there = torch.ones(4, dtype=torch.bfloat16), torch.tensor([1.0, -1.0, 2.0, 0.0])
    after = ones - torch.tensor([2**-10, -(2**-9), 2**-7, 2**-7])  # neighbours of 1 are 2⁻⁸ below and 2⁻⁷ above
    assert float(changed_share(ones, after.bfloat16(), there)) == pytest.approx(1 / 3)  # the last has no gradient
    assert math.isnan(float(changed_share(ones, ones, torch.zeros(4))))


def test_scratch_buffers_are_allocated_once_and_given_back() -> None:
    scratch = Scratch()
    big, small = torch.randn(100), torch.randn(10)
    address = scratch.values(big).data_ptr()
    assert scratch.values(small).data_ptr() == address
    assert scratch.values(small).numel() == 10
    assert scratch.values(big).data_ptr() == address
    assert scratch.values(big.double()).dtype == torch.float64
    assert scratch.flags(big).data_ptr() != scratch.values(big).data_ptr()
    scratch.clear()
    assert not scratch._buffers


def slope(*rms: float) -> float:
    return float(depth_slope(torch.tensor([rms], dtype=torch.float64)))


def test_slope_over_depth() -> None:
    assert slope(1e-6, 1e-4, 1e-2) == pytest.approx(2, rel=1e-12)
    assert slope(1.0, 0.0, 0.01, math.nan, math.inf) == pytest.approx(-1, rel=1e-12)  # depths 0 and 2 count
    assert math.isnan(slope(1.0, 0.0))
    assert math.isnan(slope(math.nan, math.nan))
    rms = [0.5, 0.3, 0.9, 0.1]
    assert slope(*rms) == pytest.approx(np.polyfit(range(4), np.log10(rms), 1)[0], rel=1e-12)
    steps = torch.tensor([rms, rms[::-1]], dtype=torch.float64)
    assert depth_slope(steps).tolist() == [slope(*rms), slope(*rms[::-1])]


def test_ordinary_gradients_take_one_pass_and_extreme_ones_the_exact_way() -> None:
    ordinary = gradient_sums(torch.randn(PIECE + 100), Scratch())
    assert all(isinstance(each, int | float) for each in ordinary)
    for factor in (1e-34, 1e25, math.inf):
        assert isinstance(gradient_sums(torch.ones(100) * factor, Scratch()).norm, Tensor)
    grad = torch.randn(100, 7) * 1e-14
    assert isinstance(gradient_sums(stored_values(grad), Scratch()).norm, float)
    assert_equals_reference(computed(grad), grad)
