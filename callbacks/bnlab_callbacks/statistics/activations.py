"""Statistics of an activation function's outputs: moments, saturation, silent and dormant units. Pure functions.

Everything is computed from outputs alone, since in-place functions overwrite their inputs. A unit is *saturated* where
the function's slope is below 5 % of its largest slope; for each function that condition on the slope is turned into
one on the output a:

sigmoid        slope a(1−a), 1−u² < 0.05 with u = 2a−1
tanh           slope 1−a² < 0.05
ELU, CELU      slope (a+α)/α < 0.05, that is a < −α(1−0.05); SELU the same times its scale
softplus       slope 1−e^(−βa) < 0.05
log-sigmoid    slope 1−e^a < 0.05
softsign       slope (1−|a|)² < 0.05
hard sigmoid, hard tanh, ReLU6   the flat parts (ReLU6: the upper one; its lower one is `zero_frac`)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnlab_callbacks.statistics.chunks import Scratch, flat, pieces, total, total_count, wide_dtype

# share of the largest slope below which a unit counts as saturated
SLOPE = 0.05

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softsign),
    *(nn.Threshold, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink),
)
# elements up to which one pass in float64 is faster than several over pieces (CPU), and those of several rows that are
# passed over at a time: then all passes stay in a core's L2 cache
_SMALL, _ROWS = 1 << 14, 1 << 15
_RECTIFIERS = (nn.ReLU, nn.ReLU6)  # ReLU6 is also a Hardtanh
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


class Saturation(NamedTuple):
    """Outputs below `low` or above `high` are saturated; None where the function has no such side."""

    low: float | None = None
    high: float | None = None
    clipped: bool = False  # outputs at the bounds are, too: the function is flat there
    rectifier: bool = False  # flat at 0 for all negative inputs, which `low` does not tell: a unit can die


def is_rectifier(module: nn.Module) -> bool:
    """Whether the function is flat at 0 for all negative inputs, so that a unit can die."""
    return isinstance(module, _RECTIFIERS)


def saturation(module: nn.Module) -> Saturation:
    """Where the module's outputs are saturated; (None, None) for functions that do not saturate."""
    return _bounds(module)._replace(rectifier=is_rectifier(module))


def _bounds(module: nn.Module) -> Saturation:
    edge = math.sqrt(1 - SLOPE)
    if isinstance(module, nn.Sigmoid):
        return Saturation((1 - edge) / 2, (1 + edge) / 2)
    if isinstance(module, nn.Tanh):
        return Saturation(-edge, edge)
    if isinstance(module, nn.ELU | nn.CELU):
        return Saturation(low=-module.alpha * (1 - SLOPE))
    if isinstance(module, nn.SELU):
        return Saturation(low=-_SELU_SCALE * _SELU_ALPHA * (1 - SLOPE))
    if isinstance(module, nn.Softplus):
        return Saturation(low=-math.log(1 - SLOPE) / module.beta)
    if isinstance(module, nn.LogSigmoid):
        return Saturation(high=math.log(1 - SLOPE))
    if isinstance(module, nn.Softsign):
        return Saturation(-(1 - math.sqrt(SLOPE)), 1 - math.sqrt(SLOPE))
    if isinstance(module, nn.ReLU6):
        return Saturation(high=6.0, clipped=True)
    if isinstance(module, nn.Hardtanh):
        return Saturation(module.min_val, module.max_val, clipped=True)
    if isinstance(module, nn.Hardsigmoid):
        return Saturation(0.0, 1.0, clipped=True)
    return Saturation()


class ActivationSums(NamedTuple):
    """Sums over one call's outputs, as tensors on their device; counts are integers."""

    mean: Tensor  # Σa/n, as far as the dtype holds it
    rest: Tensor  # what its rounding left of Σa/n
    std: Tensor  # √(Σ(a − mean)²/n)
    skew: Tensor  # Σ(a − mean)³/(n std³); 0 where outputs are all equal
    kurtosis: Tensor  # Σ(a − mean)⁴/(n std⁴); 0 where outputs are all equal, else at least 1
    absmax: Tensor | None  # max|a|; None for rectifiers, whose `unit_max` tells it
    low: Tensor | None  # number of outputs saturated on the low side
    high: Tensor | None  # number saturated on the high side
    nonzero: Tensor | None  # number not equal to 0, for rectifiers
    unit_abs: Tensor | None  # (units,): mean of the unit's |a|; None where units are not known
    unit_max: Tensor | None  # (units,): largest output of the unit, for rectifiers


class Moments(NamedTuple):
    """Number, mean, and sums of powers of the deviations from it, of a set of numbers."""

    n: float
    mean: float
    squares: float
    cubes: float
    fourths: float

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Pébay 2008, Formulas for Robust, One-Pass Parallel Computation, eq. 2.1)."""
        n, a, b = self.n + other.n, self.n, other.n
        delta = other.mean - self.mean
        step = delta / n
        apart = delta * step * a * b  # what the distance of the means adds to the squares
        squares = self.squares + other.squares + apart
        cubes = self.cubes + other.cubes + step * (apart * (a - b) + 3 * (a * other.squares - b * self.squares))
        fourths = self.fourths + other.fourths + 4 * step * (a * other.cubes - b * self.cubes)
        fourths += step * step * (apart * (a * a - a * b + b * b) + 6 * (a * a * other.squares + b * b * self.squares))
        return Moments(n, self.mean + step * b, squares, cubes, fourths)

    @property
    def std(self) -> float:
        """Standard deviation of the set itself, √(Σ(a − mean)²/n)."""
        return math.sqrt(self.squares / self.n)

    @property
    def rms(self) -> float:
        """√(Σa²/n)."""
        return math.hypot(self.mean, self.std)

    @property
    def kurtosis(self) -> float:
        """Pearson's, Σ(a − mean)⁴/(n std⁴): 3 for a normal distribution; NaN where all numbers are equal."""
        if not self.fourths:
            return math.nan
        variance = self.squares / self.n
        return self.fourths / self.n / variance / variance  # its square might be more than a float holds, or less


def activation_sums(output: Tensor, bounds: Saturation, unit_dim: int | None, scratch: Scratch) -> ActivationSums:
    """All sums of one call's outputs, in float32 (float64 for float64), whatever their dtype.

    The deviation is taken about the mean and relative to the largest magnitude: a deep sigmoid net's outputs lie within
    1e-8 of 0.5, and those of a net with weights of 1e-4 at 1e-28, and both would drown in float32's Σa² − (Σa)²/n.
    Even the mean, rounded to float32, is 1e-8 off there; what that leaves is measured and taken out.

    Args:
        output: (N, …), floating point, not empty.
        bounds: where the function saturates.
        unit_dim: dimension of the units, None where it is not known: then a rectifier's are not looked at.
        scratch: buffers for the passes over the pieces.
    """
    if is_small(output):
        return split_rows(sums_of_rows([output], bounds, unit_dim, scratch))[0]
    values = flat(output)
    wide = wide_dtype(values)
    unit_max = unit_maximum(output, unit_dim) if bounds.rectifier and unit_dim is not None else None
    if unit_max is None:
        smallest, largest = torch.aminmax(values)
        absmax = torch.maximum(largest, -smallest).to(wide)
    else:
        absmax = unit_max.amax().to(wide)
    mean, scale = values.mean(dtype=wide), absmax.clamp_min(torch.finfo(wide).tiny)
    below, above = (torch.le, torch.ge) if bounds.clipped else (torch.lt, torch.gt)
    rests, squares, cubes, fourths, low, high, nonzero = [], [], [], [], [], [], []
    for own in pieces(values):
        piece = own.to(wide)
        # half precision would round the bounds: right only where the function's own clipping rounded them alike
        compared = own if bounds.clipped else piece
        centred = torch.sub(piece, mean, out=scratch.values(piece)).div_(scale)
        square = torch.mul(centred, centred, out=scratch.flags(piece))
        rests.append(centred.sum())
        squares.append(square.sum())
        cubes.append(torch.dot(square, centred))
        fourths.append(torch.dot(square, square))
        if bounds.low is not None:
            low.append(below(compared, bounds.low, out=scratch.flags(piece)).sum())
        if bounds.high is not None:
            high.append(above(compared, bounds.high, out=scratch.flags(piece)).sum())
        if unit_max is not None:
            nonzero.append(torch.ne(piece, 0, out=scratch.flags(piece)).sum())
    rest, *powers = (total(sums) / values.numel() for sums in (rests, squares, cubes, fourths))
    variance, skew, kurtosis = _about_mean(rest, *powers)
    return ActivationSums(
        mean=mean,
        rest=scale * rest,
        std=scale * variance.sqrt(),
        skew=skew,
        kurtosis=kurtosis,
        absmax=absmax if unit_max is None else None,
        low=total_count(low) if low else None,
        high=total_count(high) if high else None,
        nonzero=total_count(nonzero) if nonzero else None,
        unit_abs=None if unit_dim is None else _means_of_units(output.abs().unsqueeze(0), unit_dim)[0],
        unit_max=unit_max,
    )


def _about_mean(rest: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variance, skewness and kurtosis, from means of the powers of deviations from a mean that is off by `rest`."""
    variance = (second - rest * rest).clamp_min(0)
    third = third - 3 * rest * second + 2 * rest**3
    fourth = fourth - 4 * rest * third - 6 * rest * rest * variance - rest**4
    spread = variance > 1e-5 * rest * rest  # else it is what rounding left of 0
    safe = variance.where(spread, 1)
    # one factor after the other: float32 does not hold the fourth power of deviations of 1e-8
    return variance, (third / safe / safe.sqrt()).where(spread, 0), (fourth / safe / safe).where(spread, 0)


def is_small(output: Tensor) -> bool:
    """Whether launches cost more than arithmetic, so that `sums_of_rows` is the way.

    Not for float64, of which fourth powers may be more than it holds, or less.
    """
    return output.device.type == "cpu" and output.numel() <= _SMALL and output.dtype != torch.float64


def sums_of_rows(
    outputs: Sequence[Tensor], bounds: Saturation, unit_dim: int | None, scratch: Scratch
) -> ActivationSums:
    """The same sums for K calls at once, (K,) or (K, units) each, in float64, where nothing cancels or underflows.

    Args:
        outputs: the small outputs of K calls, (N, …) each, of one shape and dtype, on the host.
        bounds: where the function saturates.
        unit_dim: dimension of the units in one call's output (N, …), None where it is not known.
        scratch: buffers for the passes.
    """
    most = max(1, _ROWS // outputs[0].numel())
    parts = [_sums_of_block(outputs[i : i + most], bounds, unit_dim, scratch) for i in range(0, len(outputs), most)]
    if len(parts) == 1:
        return parts[0]
    fields: list[Any] = [None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)]
    return ActivationSums(*fields)


def _sums_of_block(
    outputs: Sequence[Tensor], bounds: Saturation, unit_dim: int | None, scratch: Scratch
) -> ActivationSums:
    """As `sums_of_rows`, of as many rows as stay in the cache."""
    rows, numel, of_all = len(outputs), outputs[0].numel(), (len(outputs), *outputs[0].shape)

    def buffer(use: str, dtype: torch.dtype) -> Tensor:
        return scratch.get(use, rows * numel, dtype, outputs[0].device).view(rows, numel)

    values = buffer("outputs", outputs[0].dtype)
    torch.stack(list(outputs), out=values.view(of_all))
    wide = buffer("values", torch.float64).copy_(values)
    unit_max = None
    if bounds.rectifier and unit_dim is not None:
        unit_max = _maxima_of_units(values.view(of_all), unit_dim)
    below, above = (torch.le, torch.ge) if bounds.clipped else (torch.lt, torch.gt)
    # half precision would round the bounds: right only where the function's own clipping rounded them alike
    compared = values if bounds.clipped else wide
    # rows are small: float32 holds their counts, and adds faster than integers
    flags = buffer("flags", torch.float32)

    def count(some: Tensor, compare: Callable[..., Tensor], bound: float) -> Tensor:
        return compare(some, bound, out=flags).sum(1).to(torch.int64)

    powers = buffer("powers", torch.float64)
    magnitudes = torch.abs(wide, out=powers)
    absmax = magnitudes.amax(1) if unit_max is None else None
    unit_abs = None if unit_dim is None else _means_of_units(magnitudes.view(of_all), unit_dim)
    low = None if bounds.low is None else count(compared, below, bounds.low)
    high = None if bounds.high is None else count(compared, above, bounds.high)
    nonzero = None if unit_max is None else count(values, torch.ne, 0)
    mean = divided(wide.sum(1), numel)
    torch.mul(wide.sub_(mean[:, None]), wide, out=powers)
    moments = _standardised(powers.sum(1), wide.mul_(powers).sum(1), powers.square_().sum(1), mean, numel)
    return ActivationSums(mean, torch.zeros_like(mean), *moments, absmax, low, high, nonzero, unit_abs, unit_max)


def divided(sums: Tensor, number: float) -> Tensor:
    """The quotients, on the host: by NumPy, whose calls on so few numbers take a fifth of torch's."""
    return torch.from_numpy(sums.numpy() / number)


def _standardised(
    squares: Tensor, cubes: Tensor, fourths: Tensor, mean: Tensor, numel: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Standard deviation, skewness and kurtosis of K rows, from sums of powers of deviations: float64, on the host."""
    import numpy

    second, third, fourth = ((each.numpy() / numel) for each in (squares, cubes, fourths))
    with numpy.errstate(all="ignore"):
        std = numpy.sqrt(second)
        spread = std > 1e-14 * abs(mean.numpy())  # else it is what rounding left of 0
        skew, kurtosis = third / second / std, fourth / second / second
    skew, kurtosis = numpy.where(spread, skew, 0.0), numpy.where(spread, kurtosis, 0.0)
    return torch.from_numpy(std), torch.from_numpy(skew), torch.from_numpy(kurtosis)


def split_rows(sums: ActivationSums) -> list[ActivationSums]:
    """The sums of K calls, one by one."""
    rows = [[None] * len(sums.mean) if field is None else list(field.unbind()) for field in sums]
    return [ActivationSums(*row) for row in zip(*rows, strict=True)]


def _maxima_of_units(outputs: Tensor, unit_dim: int) -> Tensor:
    """(K, units) of the outputs (K, N, …) of K calls."""
    outputs, others = _others(outputs, unit_dim)
    return outputs.amax(others) if others else outputs


def _means_of_units(magnitudes: Tensor, unit_dim: int) -> Tensor:
    """(K, units) of the magnitudes (K, N, …) of K calls' outputs."""
    magnitudes, others = _others(magnitudes, unit_dim)
    if not others:
        return magnitudes.clone()  # it is a buffer
    if magnitudes.dtype == torch.float64:
        return magnitudes.sum(others) / math.prod(magnitudes.shape[dim] for dim in others)
    return magnitudes.mean(others, dtype=wide_dtype(magnitudes))


def _others(outputs: Tensor, unit_dim: int) -> tuple[Tensor, list[int]]:
    """The outputs (K, N, …) of K calls, at least (K, 1), and all dimensions but the first and that of the units."""
    if outputs.ndim == 1:  # one number a call
        outputs = outputs[:, None]
    unit_dim = unit_dim % (outputs.ndim - 1) + 1
    return outputs, [dim for dim in range(1, outputs.ndim) if dim != unit_dim]


def unit_maximum(output: Tensor, unit_dim: int) -> Tensor:
    """Largest output of each unit over all samples and positions: (N, C, H, W) → (C,) for unit_dim=1."""
    return _maxima_of_units(output.unsqueeze(0), unit_dim)[0]
