"""Activation sums, saturation thresholds and dead units against plain float64 NumPy and autograd."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab_callbacks.recorders.activations import find_activations, units_of
from bnlab_callbacks.statistics.activations import (
    ACTIVATIONS,
    ActivationSums,
    Moments,
    Saturation,
    activation_sums,
    is_rectifier,
    saturation,
    unit_maximum,
)
from bnlab_callbacks.statistics.chunks import Scratch

ARGUMENTS: dict[type[nn.Module], tuple[Any, ...]] = {
    nn.Threshold: (0.5, 0.0),
}
ALL = [kind(*ARGUMENTS.get(kind, ())) for kind in ACTIVATIONS]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# largest slopes, from the functions' formulas
SATURATING = [
    (nn.Sigmoid(), 0.25),
    (nn.Tanh(), 1.0),
    (nn.ELU(), 1.0),
    (nn.ELU(alpha=2.0), 2.0),
    (nn.CELU(alpha=0.5), 1.0),
    (nn.SELU(), 1.0507009873554805 * 1.6732632423543772),
    (nn.Softplus(), 1.0),
    (nn.Softplus(beta=3.0), 1.0),
    (nn.LogSigmoid(), 1.0),
    (nn.Softsign(), 1.0),
    (nn.Hardtanh(), 1.0),
    (nn.Hardtanh(-2.0, 3.0), 1.0),
    (nn.Hardsigmoid(), 1 / 6),
    (nn.ReLU6(), 1.0),
]


def sums_of(output: Tensor, module: nn.Module, unit_dim: int | None = 1) -> ActivationSums:
    return activation_sums(output, saturation(module), unit_dim, Scratch())


def absmax(sums: ActivationSums) -> float:
    largest = sums.absmax if sums.unit_max is None else sums.unit_max.amax()
    assert largest is not None
    return float(largest)


def assert_equals_reference(sums: ActivationSums, output: Tensor, module: nn.Module, unit_dim: int = 1) -> None:
    """The definitions in float64, on the very same values."""
    a, bounds = output.detach().double().numpy(), saturation(module)
    n = a.size
    rounding = 4e-7 * np.abs(a).max()
    assert float(sums.mean) + float(sums.rest) == pytest.approx(a.mean(), rel=1e-6, abs=rounding)
    assert float(sums.std) == pytest.approx(a.std(), rel=3e-5 if n > 2**18 else 2e-6, abs=1e-3 * rounding)
    assert absmax(sums) == np.abs(a).max()
    others = tuple(i for i in range(a.ndim) if i != unit_dim % a.ndim)
    assert sums.unit_abs is not None
    np.testing.assert_allclose(sums.unit_abs.double(), np.abs(a).mean(axis=others), rtol=2e-6, atol=1e-30)
    skew, kurtosis = (float(((a - a.mean()) ** power).mean() / a.std() ** power) for power in (3, 4))
    assert float(sums.skew) == pytest.approx(skew, rel=1e-4, abs=1e-4)
    assert float(sums.kurtosis) == pytest.approx(kurtosis, rel=1e-4)
    assert (sums.low is None, sums.high is None) == (bounds.low is None, bounds.high is None)
    below, above = (np.less_equal, np.greater_equal) if bounds.clipped else (np.less, np.greater)
    if sums.low is not None and bounds.low is not None:
        assert int(sums.low) == below(a, np.float32(bounds.low)).sum()
    if sums.high is not None and bounds.high is not None:
        assert int(sums.high) == above(a, np.float32(bounds.high)).sum()
    if is_rectifier(module):
        assert sums.nonzero is not None
        assert sums.unit_max is not None
        assert int(sums.nonzero) == (a != 0).sum()
        assert sums.unit_max.tolist() == a.max(axis=others).tolist()
    else:
        assert sums.nonzero is None
        assert sums.unit_max is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("module", ALL, ids=lambda module: type(module).__name__)
def test_sums_equal_numpy_for_every_activation_and_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    inputs = torch.randn(64, 33) * 3
    inputs[:, 5] = -inputs[:, 5].abs()  # a dead unit
    output = module(inputs).detach().to(dtype)
    assert_equals_reference(sums_of(output, module), output, module)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Sigmoid()], ids=lambda module: type(module).__name__)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sums_of_large_images_in_both_memory_formats_equal_numpy(
    module: nn.Module, layout: torch.memory_format
) -> None:
    output = module(torch.randn(16, 20, 32, 32)).contiguous(memory_format=layout)  # more than one piece
    output[:, 3] = 0
    assert_equals_reference(sums_of(output, module), output, module)


@pytest.mark.parametrize(("module", "steepest"), SATURATING, ids=lambda each: str(each))
def test_saturated_means_a_slope_below_five_percent_of_the_steepest(module: nn.Module, steepest: float) -> None:
    x = torch.linspace(-12, 12, 48_002, dtype=torch.float64, requires_grad=True)
    output = module(x)
    (slope,) = torch.autograd.grad(output.sum(), x)
    assert float(slope.max()) == pytest.approx(steepest, rel=1e-3)
    flat = slope < 0.05 * steepest
    bounds, a = saturation(module), output.detach()
    below, above = (torch.le, torch.ge) if bounds.clipped else (torch.lt, torch.gt)
    low = below(a, bounds.low) if bounds.low is not None else torch.zeros_like(flat)
    high = above(a, bounds.high) if bounds.high is not None else torch.zeros_like(flat)
    if isinstance(module, nn.ReLU6):
        low = a == 0  # that side is `zero_frac`
    assert not bool((low & high).any())
    assert torch.equal(low | high, flat)
    sums = activation_sums(a.unsqueeze(1), bounds, None, Scratch())
    assert int(low.sum()) == int(sums.low or 0) + (int((a == 0).sum()) if isinstance(module, nn.ReLU6) else 0)
    assert int(high.sum()) == int(sums.high or 0)
    assert 0 < int(flat.sum()) < flat.numel()


@pytest.mark.parametrize("kind", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish])
def test_functions_that_do_not_saturate_have_no_bounds(kind: type[nn.Module]) -> None:
    assert saturation(kind())[:2] == (None, None)


def test_sigmoid_and_tanh_bounds_by_hand() -> None:
    """1 − u² < 0.05 where |u| > √0.95."""
    assert saturation(nn.Tanh()) == pytest.approx((-0.9746794344808963, 0.9746794344808963, False, False))
    assert saturation(nn.Sigmoid()) == pytest.approx((0.0126602827595518, 0.9873397172404482, False, False))
    assert saturation(nn.ELU(alpha=2.0)) == (-1.9, None, False, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("module", [nn.Hardtanh(), nn.Hardtanh(-0.3, 0.7), nn.ReLU6(), nn.Hardsigmoid()], ids=str)
def test_clipped_outputs_count_as_saturated_in_every_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    output = module(torch.tensor([[-100.0, 0.5, 100.0, 200.0]]).to(dtype))
    assert int(sums_of(output, module).high) == 2  # type: ignore[arg-type]


def deviation(output: Tensor) -> tuple[float, float]:
    """Standard deviation as computed, and in float64 on the same values."""
    sums = activation_sums(output, Saturation(), None, Scratch())
    return float(sums.std), float(np.std(output.double().numpy()))


@pytest.mark.parametrize("numel", [2, 1000, 600_000])
def test_spread_of_values_within_2e_8_of_a_half(numel: int) -> None:
    """Adjacent float32 values: their mean has no float32 of its own."""
    below = np.nextafter(np.float32(0.5), np.float32(0))
    output = torch.full((numel, 1), 0.5)
    output[: numel // 2] = float(below)
    actual, expected = deviation(output)
    assert expected == pytest.approx(1.49e-8, rel=1e-2)
    assert actual == pytest.approx(expected, rel=1e-5)
    assert shape(output) == pytest.approx((0, 1), abs=1e-3)  # two values, half of each


def test_spread_of_a_deep_sigmoid_nets_outputs() -> None:
    output = torch.sigmoid(torch.randn(1000, 100, dtype=torch.float64) * 8e-8).float()
    actual, expected = deviation(output)
    assert actual == pytest.approx(expected, rel=1e-5)
    assert shape(output) == pytest.approx(shape_by_hand(output), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("magnitude", [1e-28, 1e-36, 1e25, 1e36])
def test_spread_where_squares_leave_float32(magnitude: float) -> None:
    output = torch.randn(100, 10) * magnitude
    actual, expected = deviation(output)
    assert actual == pytest.approx(expected, rel=1e-5)
    assert shape(output) == pytest.approx(shape_by_hand(output), rel=1e-5)


def shape(output: Tensor) -> tuple[float, float]:
    """Skewness and kurtosis as computed."""
    sums = activation_sums(output, Saturation(), None, Scratch())
    return float(sums.skew), float(sums.kurtosis)


def shape_by_hand(output: Tensor) -> tuple[float, float]:
    a = output.double().numpy()
    z = (a - a.mean()) / a.std()
    return (z**3).mean(), (z**4).mean()


@pytest.mark.parametrize("numel", [1000, 1_000_000])
def test_one_output_of_a_thousand_standard_deviations(numel: int) -> None:
    """What a massive activation does: the kurtosis approaches the number of outputs."""
    output = torch.randn(numel, 1)
    output[17] = 3e4
    assert shape(output) == pytest.approx(shape_by_hand(output), rel=1e-4)
    assert shape(output)[1] == pytest.approx(numel, rel=1e-2)


@pytest.mark.parametrize("samples", [1000, 3000])  # in one pass, and in pieces
@pytest.mark.parametrize("value", [0.0, 0.1, -3e-30, 1e30])
def test_equal_outputs_have_no_spread(value: float, samples: int) -> None:
    output = torch.full((samples, 7), value)
    sums = activation_sums(output, Saturation(), None, Scratch())
    assert float(sums.mean) + float(sums.rest) == pytest.approx(float(output[0, 0]), rel=1e-12)
    assert float(sums.std) <= 1e-8 * abs(value)
    assert (float(sums.skew), float(sums.kurtosis)) == (0, 0)


def test_more_than_65504_half_precision_outputs_are_counted_exactly() -> None:
    """The sum of 70,000 float16 ones is infinite in float16."""
    output = torch.ones(1, 70_000, dtype=torch.float16)
    output[:, :17_501] = 0
    sums = sums_of(output, nn.ReLU())
    assert 70_000 - int(sums.nonzero) == 17_501  # type: ignore[arg-type]
    assert int((sums.unit_max > 0).sum()) == 52_499  # type: ignore[union-attr]
    assert float(sums.mean) + float(sums.rest) == pytest.approx(52_499 / 70_000, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_outputs_are_compared_with_unrounded_bounds(dtype: torch.dtype) -> None:
    """In bfloat16 the sigmoid's upper bound itself would round to a saturated value."""
    output = torch.sigmoid(torch.linspace(-8, 8, 20_001)).to(dtype).unsqueeze(1)
    assert_equals_reference(sums_of(output, nn.Sigmoid()), output, nn.Sigmoid())


def test_nan_shows_in_the_moments() -> None:
    sums = sums_of(torch.tensor([[1.0, math.nan]]), nn.ReLU())
    assert all(math.isnan(float(each)) for each in (sums.mean, sums.std, absmax(sums)))


@pytest.mark.parametrize(
    ("shape", "unit_dim", "others"),
    [
        ((6, 5), 1, (0,)),
        ((6, 5), -1, (0,)),
        ((6, 5, 3, 4), 1, (0, 2, 3)),
        ((6, 7, 5), -1, (0, 1)),
        ((6, 5, 7), 1, (0, 2)),
        ((6, 5, 2, 3, 2), 1, (0, 2, 3, 4)),
        ((6, 2, 3, 5), -1, (0, 1, 2)),
        ((5,), 0, ()),
    ],
    ids=str,
)
def test_unit_maximum_equals_numpy(shape: tuple[int, ...], unit_dim: int, others: tuple[int, ...]) -> None:
    output = torch.randn(shape)
    assert unit_maximum(output, unit_dim).tolist() == output.numpy().max(axis=others).tolist()


@pytest.mark.parametrize(
    ("ndim", "known", "dim"),
    [(2, -1, -1), (3, -1, -1), (3, 1, 1), (4, 1, 1), (4, -1, -1), (3, None, -1), (4, None, 1), (2, None, 1), (1, 1, 0)],
)
def test_units_lie_where_the_layer_before_puts_them(ndim: int, known: int | None, dim: int) -> None:
    assert units_of(ndim, known) == dim


def test_activations_are_found_with_their_units_dimension() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.ELU(), nn.Linear(4, 4), nn.Tanh())
    found = [(name, type(module), dim) for name, module, dim in find_activations(net)]
    assert found == [("0", nn.ReLU, None), ("3", nn.ELU, 1), ("5", nn.Tanh, -1)]


@pytest.mark.parametrize("cut", [1, 50, 99])
def test_merged_moments_equal_those_of_the_whole(cut: int) -> None:
    values = 0.5 + 1e-6 * np.random.default_rng(0).normal(0, 1, 100) ** 3
    merged = moments(values[:cut]).merge(moments(values[cut:]))
    assert merged.n == 100
    assert merged.mean == pytest.approx(values.mean(), rel=1e-14)
    assert merged.std == pytest.approx(values.std(), rel=1e-9)
    assert merged == pytest.approx(moments(values), rel=1e-8)
    assert merged.kurtosis == pytest.approx(((values - values.mean()) ** 4).mean() / values.std() ** 4, rel=1e-8)


def moments(a: Any) -> Moments:
    squares, cubes, fourths = (float(((a - a.mean()) ** power).sum()) for power in (2, 3, 4))
    return Moments(a.size, float(a.mean()), squares, cubes, fourths)


def test_merged_moments_by_hand() -> None:
    whole = Moments(4, 2.0, 8.0, 0.0, 32.0)
    assert Moments(2, 1.0, 2.0, 0.0, 2.0).merge(Moments(2, 3.0, 2.0, 0.0, 2.0)) == whole  # {0, 2} and {2, 4}
    assert (whole.std, whole.rms, whole.kurtosis) == (math.sqrt(2), pytest.approx(math.sqrt(6)), 2)


@pytest.mark.parametrize(("scale", "kurtosis"), [(1e-90, math.nan), (1e-70, 2), (1e70, 2), (1e90, math.inf)])
def test_the_kurtosis_of_numbers_whose_fourth_powers_hardly_are_floats(scale: float, kurtosis: float) -> None:
    with np.errstate(over="ignore"):
        numbers = moments(np.array([0.0, 2.0, 2.0, 4.0]) * scale)
    assert numbers.kurtosis == pytest.approx(kurtosis, nan_ok=True)
