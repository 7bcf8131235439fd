"""Statistics of an activation function's outputs: moments, saturation, silent units. Pure functions.

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
from collections.abc import Callable
from typing import NamedTuple

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
# elements up to which one pass in float64 is faster than several over pieces (CPU)
_SMALL = 1 << 14
_RECTIFIERS = (nn.ReLU, nn.ReLU6)  # ReLU6 is also a Hardtanh
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


class Saturation(NamedTuple):
    """Outputs below `low` or above `high` are saturated; None where the function has no such side."""

    low: float | None = None
    high: float | None = None
    clipped: bool = False  # outputs at the bounds are, too: the function is flat there


def is_rectifier(module: nn.Module) -> bool:
    """Whether the function is flat at 0 for all negative inputs, so that a unit can die."""
    return isinstance(module, _RECTIFIERS)


def saturation(module: nn.Module) -> Saturation:
    """Where the module's outputs are saturated; (None, None) for functions that do not saturate."""
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
    absmax: Tensor | None  # max|a|; None for rectifiers, whose `unit_max` tells it
    low: Tensor | None  # number of outputs saturated on the low side
    high: Tensor | None  # number saturated on the high side
    nonzero: Tensor | None  # number not equal to 0, for rectifiers
    unit_max: Tensor | None  # (units,): largest output of the unit, for rectifiers


def activation_sums(output: Tensor, bounds: Saturation, unit_dim: int | None, scratch: Scratch) -> ActivationSums:
    """All sums of one call's outputs, in float32 (float64 for float64), whatever their dtype.

    The deviation is taken about the mean and relative to the largest magnitude: a deep sigmoid net's outputs lie within
    1e-8 of 0.5, and those of a net with weights of 1e-4 at 1e-28, and both would drown in float32's Σa² − (Σa)²/n.
    Even the mean, rounded to float32, is 1e-8 off there; what that leaves is measured and taken out.

    Args:
        output: (N, …), floating point, not empty.
        bounds: where the function saturates.
        unit_dim: dimension of the units for a rectifier, None for other functions.
        scratch: buffers for the passes over the pieces.
    """
    if torch.compiler.is_compiling():
        return _sums_for_compiler(output, bounds, unit_dim)
    if is_small(output):
        return split_rows(sums_of_rows(output.unsqueeze(0), bounds, unit_dim))[0]
    values = flat(output)
    wide = wide_dtype(values)
    unit_max = None if unit_dim is None else unit_maximum(output, unit_dim)
    if unit_max is None:
        smallest, largest = torch.aminmax(values)
        absmax = torch.maximum(largest, -smallest).to(wide)
    else:
        absmax = unit_max.amax().to(wide)
    mean, scale = values.mean(dtype=wide), absmax.clamp_min(torch.finfo(wide).tiny)
    below, above = (torch.le, torch.ge) if bounds.clipped else (torch.lt, torch.gt)
    squares, rests, low, high, nonzero = [], [], [], [], []
    for own in pieces(values):
        piece = own.to(wide)
        # half precision would round the bounds: right only where the function's own clipping rounded them alike
        compared = own if bounds.clipped else piece
        centred = torch.sub(piece, mean, out=scratch.values(piece)).div_(scale)
        squares.append(torch.dot(centred, centred))
        rests.append(centred.sum())
        if bounds.low is not None:
            low.append(below(compared, bounds.low, out=scratch.flags(piece)).sum())
        if bounds.high is not None:
            high.append(above(compared, bounds.high, out=scratch.flags(piece)).sum())
        if unit_max is not None:
            nonzero.append(torch.ne(piece, 0, out=scratch.flags(piece)).sum())
    rest = total(rests) / values.numel()
    return ActivationSums(
        mean=mean,
        rest=scale * rest,
        std=scale * (total(squares) / values.numel() - rest * rest).clamp_min(0).sqrt(),
        absmax=absmax if unit_max is None else None,
        low=total_count(low) if low else None,
        high=total_count(high) if high else None,
        nonzero=total_count(nonzero) if nonzero else None,
        unit_max=unit_max,
    )


def is_small(output: Tensor) -> bool:
    """Whether launches cost more than arithmetic, so that `sums_of_rows` is the way."""
    return output.device.type == "cpu" and output.numel() <= _SMALL


def sums_of_rows(outputs: Tensor, bounds: Saturation, unit_dim: int | None) -> ActivationSums:
    """The same sums for K calls at once, (K,) or (K, units) each, in float64, where nothing cancels or underflows.

    Args:
        outputs: (K, N, …), the outputs of K calls.
        bounds: where the function saturates.
        unit_dim: dimension of the units in one call's output (N, …) for a rectifier, None for other functions.
    """
    values = outputs.flatten(1)
    wide = values.to(torch.float64, copy=True)
    mean = wide.mean(1)
    unit_max = None if unit_dim is None else _maxima_of_units(outputs, unit_dim)
    below, above = (torch.le, torch.ge) if bounds.clipped else (torch.lt, torch.gt)
    # half precision would round the bounds: right only where the function's own clipping rounded them alike
    compared = values if bounds.clipped else wide
    # rows are small: float32 holds their counts, and adds faster than integers
    flags = torch.empty(values.shape)

    def count(some: Tensor, compare: Callable[..., Tensor], bound: float) -> Tensor:
        return compare(some, bound, out=flags).sum(1).to(torch.int64)

    low = None if bounds.low is None else count(compared, below, bounds.low)
    high = None if bounds.high is None else count(compared, above, bounds.high)
    nonzero = None if unit_max is None else count(values, torch.ne, 0)
    absmax = wide.abs().amax(1) if unit_max is None else None
    std = torch.linalg.vector_norm(wide.sub_(mean[:, None]), 2, dim=1) / math.sqrt(values.shape[1])
    return ActivationSums(mean, torch.zeros_like(mean), std, absmax, low, high, nonzero, unit_max)


def split_rows(sums: ActivationSums) -> list[ActivationSums]:
    """The sums of K calls, one by one."""
    rows = [[None] * len(sums.mean) if field is None else list(field.unbind()) for field in sums]
    return [ActivationSums(*row) for row in zip(*rows, strict=True)]


def _maxima_of_units(outputs: Tensor, unit_dim: int) -> Tensor:
    """(K, units) of the outputs (K, N, …) of K calls."""
    if outputs.ndim == 1:  # one number a call
        return outputs[:, None]
    unit_dim = unit_dim % (outputs.ndim - 1) + 1
    others = [dim for dim in range(1, outputs.ndim) if dim != unit_dim]
    return outputs.amax(others) if others else outputs


def _sums_for_compiler(output: Tensor, bounds: Saturation, unit_dim: int | None) -> ActivationSums:
    """The same sums as plain expressions, which torch.compile fuses by itself."""
    values = output.to(wide_dtype(output))
    absmax = values.abs().amax()
    scale = absmax.clamp_min(torch.finfo(values.dtype).tiny)
    below, above = (torch.le, torch.ge) if bounds.clipped else (torch.lt, torch.gt)
    compared = output if bounds.clipped else values
    mean = values.mean()
    centred = (values - mean) / scale
    rest = centred.mean()
    return ActivationSums(
        mean=mean,
        rest=scale * rest,
        std=scale * (centred - rest).square().mean().sqrt(),
        absmax=absmax if unit_dim is None else None,
        low=None if bounds.low is None else below(compared, bounds.low).sum(),
        high=None if bounds.high is None else above(compared, bounds.high).sum(),
        nonzero=None if unit_dim is None else (values != 0).sum(),
        unit_max=None if unit_dim is None else unit_maximum(output, unit_dim),
    )


def unit_maximum(output: Tensor, unit_dim: int) -> Tensor:
    """Largest output of each unit over all samples and positions: (N, C, H, W) → (C,) for unit_dim=1."""
    return _maxima_of_units(output.unsqueeze(0), unit_dim)[0]


class Moments(NamedTuple):
    """Number, mean and sum of squared deviations of a set of numbers."""

    n: float
    mean: float
    squares: float

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub & LeVeque 1983, eq. 2.1)."""
        n = self.n + other.n
        delta = other.mean - self.mean
        return Moments(
            n,
            self.mean + delta * other.n / n,
            self.squares + other.squares + delta * delta * self.n * other.n / n,
        )

    @property
    def std(self) -> float:
        """Standard deviation of the set itself, √(Σ(a − mean)²/n)."""
        return math.sqrt(self.squares / self.n)
