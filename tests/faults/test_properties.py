"""Split, standardisation and statistics against NumPy in float64, over shapes, dtypes and extreme values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnlab.data.split import pixel_statistics, split_indices
from bnlab.errors import InputError
from bnlab_callbacks.statistics.activations import activation_sums, is_rectifier, saturation
from bnlab_callbacks.statistics.chunks import Scratch
from bnlab_callbacks.statistics.gradients import gradient_statistics, gradient_sums, stored_values

often = settings(derandomize=True, max_examples=60, deadline=None, database=None)

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)
# everything that float32 can hold, and what it holds worst
NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 1.1754944e-38, 1e-30, 1e-8, 0.5, 1.0, 6.0, 1e15, 1e19, 3e38, -3e38]),
)
ODD = st.sampled_from([math.nan, math.inf, -math.inf])


@st.composite
def tensors(draw: st.DrawFn, odd: bool) -> Tensor:
    """A tensor of a few distinct values, spread by a seed; with `odd` some element is NaN or infinite."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    values = draw(st.lists(NUMBERS, min_size=1, max_size=5))
    generator = np.random.default_rng(draw(st.integers(0, 9)))
    array = generator.choice(np.array(values), size=shape)
    if odd:
        array.flat[draw(st.integers(0, array.size - 1))] = draw(ODD)
    made = torch.from_numpy(array).to(dtype)
    assume(odd or bool(made.isfinite().all()))  # float16 holds less than float32
    return made


# the split


@often
@given(n=st.integers(0, 3000), share=st.floats(allow_nan=True), seed=st.integers(0, 2**63 - 1))
def test_a_split_is_two_parts_of_the_whole_or_an_error(n: int, share: float, seed: int) -> None:
    state = torch.get_rng_state()
    try:
        train, val = split_indices(n, share, seed)
    except InputError:
        assert not 0 < share < 1 or round(n * share) in (0, n)
        return
    assert len(val) == round(n * share)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(n))
    for part in (train, val):
        assert torch.equal(part, part.sort().values)
    again = split_indices(n, share, seed)
    assert torch.equal(train, again[0])
    assert torch.equal(val, again[1])
    assert torch.equal(torch.get_rng_state(), state)


# standardisation


@often
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    levels=st.lists(st.integers(0, 255), min_size=1, max_size=4),
    seed=st.integers(0, 9),
    padding=st.integers(0, 3),
    per_channel=st.booleans(),
)
def test_pixel_statistics_are_numpys(
    shape: tuple[int, ...], levels: list[int], seed: int, padding: int, per_channel: bool
) -> None:
    pixels = np.random.default_rng(seed).choice(np.array(levels, np.uint8), size=shape)
    mean, std = pixel_statistics(torch.from_numpy(pixels), padding, per_channel)
    padded = np.pad(pixels, [(0, 0), (0, 0), (padding, padding), (padding, padding)]).astype(np.float64)
    axes = (0, 2, 3) if per_channel else (0, 1, 2, 3)
    expected_std = padded.std(axes)
    expected_std = np.where(padded.max(axes) == padded.min(axes), 1.0, expected_std)  # constant
    np.testing.assert_allclose(mean.flatten(), np.atleast_1d(padded.mean(axes)), rtol=1e-6)
    np.testing.assert_allclose(std.flatten(), np.atleast_1d(expected_std), rtol=1e-6)
    standardised = (torch.from_numpy(padded).float() - mean) / std
    assert bool(standardised.isfinite().all())
    np.testing.assert_allclose(standardised.double().mean(), 0, atol=1e-5 * (1 + float((mean / std).max())))


# gradients


def gradient_values(grad: Tensor) -> dict[str, float]:
    values = stored_values(grad)
    sums = [*(float(each) for each in gradient_sums(values, Scratch())), values.numel()]
    found = gradient_statistics(
        torch.tensor([[sums]], dtype=torch.float64), torch.tensor([grad.numel()]), torch.ones(1, 1)
    )
    return {name: float(value) for name, value in found.items()}


@often
@given(grad=tensors(odd=False))
def test_gradient_statistics_are_numpys(grad: Tensor) -> None:
    found, g = gradient_values(grad), grad.double().numpy().ravel()
    assert found["grad_zero_frac"] == (g == 0).mean()
    assert found["grad_nonfinite"] == 0
    absolute = np.abs(g).sum()
    assume(grad.dtype == torch.float64 or absolute < 3e38)  # beyond that they are infinite, as the next test says
    tiny = 2e-45  # half of float32's smallest step, for each of the elements
    largest = np.abs(g).max()
    rms = largest * math.sqrt(np.square(g / largest).mean()) if largest else 0.0
    assert found["grad_mean_abs"] == pytest.approx(absolute / g.size, rel=3e-6, abs=tiny)
    assert found["grad_mean"] == pytest.approx(g.sum() / g.size, rel=3e-6, abs=tiny + 1e-6 * absolute / g.size)
    assert found["grad_rms"] == pytest.approx(rms, rel=1e-5, abs=tiny)


@often
@given(size=st.integers(2, 50), large=st.floats(2.0**127, 2.0**127 * 1.5, width=32))
def test_gradients_whose_sum_is_beyond_float32_are_infinite_not_missing(size: int, large: float) -> None:
    found = gradient_values(torch.full((size,), large))
    assert found["grad_mean_abs"] == found["grad_rms"] == math.inf
    assert found["grad_nonfinite"] == found["grad_zero_frac"] == 0


@often
@given(grad=tensors(odd=True))
def test_elements_that_are_not_finite_are_counted_and_seen(grad: Tensor) -> None:
    found, g = gradient_values(grad), grad.double().numpy().ravel()
    assert found["grad_nonfinite"] == (~np.isfinite(g)).sum()
    assert found["grad_zero_frac"] == (g == 0).mean()
    for name in ("grad_mean_abs", "grad_mean", "grad_rms"):
        assert not math.isfinite(found[name]), name
    if np.isnan(g).any():
        assert all(math.isnan(found[name]) for name in ("grad_mean_abs", "grad_mean", "grad_rms"))


# activations

MODULES = st.sampled_from([nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.Hardtanh(), nn.ReLU6()])


def activation_values(output: Tensor, module: nn.Module) -> Any:
    unit_dim = (1 if output.ndim > 1 else 0) if is_rectifier(module) else None
    return activation_sums(output, saturation(module), unit_dim, Scratch())


@often
@given(before=tensors(odd=False), module=MODULES, copies=st.sampled_from([1, 20_000]))
def test_activation_statistics_are_numpys(before: Tensor, module: nn.Module, copies: int) -> None:
    """`copies`: small outputs and large ones are summed in two ways."""
    output = module(before.float().repeat(copies // before.numel() + 1, *[1] * (before.ndim - 1)).to(before.dtype))
    a = output.double().numpy()
    largest = np.abs(a).max()
    assume(bool(np.isfinite(a).all()) and (output.dtype == torch.float64 or largest < 1e34))
    sums = activation_values(output, module)
    tiny = 2e-45
    mean = float(a.mean())
    scaled = a / largest if largest else a
    deviation = float(largest * np.sqrt(np.square(scaled - scaled.mean()).mean())) if largest else 0.0
    assert float(sums.mean) + float(sums.rest) == pytest.approx(mean, rel=1e-6, abs=4e-7 * largest + tiny)
    assert float(sums.std) == pytest.approx(deviation, rel=1e-5, abs=1e-6 * largest + tiny)
    if sums.absmax is not None:
        assert float(sums.absmax) == largest
    if sums.nonzero is not None:
        assert int(sums.nonzero) == (a != 0).sum()
    if sums.unit_max is not None:
        others = tuple(i for i in range(a.ndim) if i != min(1, a.ndim - 1))
        assert sums.unit_max.tolist() == a.max(axis=others).ravel().tolist()


@often
@given(output=tensors(odd=True), module=MODULES, copies=st.sampled_from([1, 20_000]))
def test_activations_that_are_not_finite_are_seen(output: Tensor, module: nn.Module, copies: int) -> None:
    output = output.repeat(copies // output.numel() + 1, *[1] * (output.ndim - 1))
    sums = activation_values(output, module)
    largest = sums.absmax if sums.unit_max is None else sums.unit_max.amax()
    assert not math.isfinite(float(sums.mean) + float(sums.rest))
    assert math.isnan(float(sums.std))
    a = output.double().numpy()
    if np.isnan(a).any():
        assert math.isnan(float(largest))
    elif sums.unit_max is None:
        assert float(largest) == math.inf
