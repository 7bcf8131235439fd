"""Sums over one layer's gradient, and the statistics that they give. Pure functions.

Definitions, for a gradient g with n elements: `grad_mean_abs` = ‖g‖₁/n (the thesis's mean gradients), `grad_mean` =
Σg/n, `grad_rms` = ‖g‖₂/√n, `grad_zero_frac` = share of elements equal to 0, `grad_nonfinite` = number of NaN and ±inf.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.core.weights import real
from bnlab_callbacks.statistics.chunks import Scratch, flat, pieces, total, total_count, wide_dtype

# mean squares that float32 holds with elements of any size around the mean: no square that matters is 0 or infinite
_SQUARES = 1e-30, 1e30


class GradientSums(NamedTuple):
    """Sums over one gradient, as 0-dimensional tensors on its device or, of an ordinary one on a CPU, as numbers."""

    absolute: Tensor | float  # ‖g‖₁
    signed: Tensor | float  # Σg
    norm: Tensor | float  # ‖g‖₂
    zeros: Tensor | float  # number of stored elements equal to 0
    finite: Tensor | float  # number of stored elements that are finite


def stored_values(grad: Tensor) -> Tensor:
    """The numbers that a gradient stores, flat: a sparse one's values, a complex one's parts; nothing else changed."""
    if grad.is_sparse:
        grad = grad.coalesce().values()
    return flat(real(grad.detach()))


def gradient_sums(values: Tensor, scratch: Scratch) -> GradientSums:
    """All sums of the flat tensor `values`, in float32 (float64 for float64), whatever its dtype.

    The 2-norm is taken of values divided by their mean magnitude: squares of gradients of 1e-34 (N(0, 1e-4²) weights in
    a deep net) would all be 0 in float32.
    """
    if values.device.type == "cpu":
        ordinary = _ordinary_sums(values, scratch)
        if ordinary is not None:
            return ordinary
    absolute, signed, zeros, finite = [], [], [], []
    wide = wide_dtype(values)
    for piece in pieces(values):
        piece = piece.to(wide)
        magnitude = torch.abs(piece, out=scratch.values(piece))
        absolute.append(magnitude.sum())
        signed.append(piece.sum())
        zeros.append(torch.eq(piece, 0, out=scratch.flags(piece)).sum())
        finite.append(torch.lt(magnitude, math.inf, out=scratch.flags(piece)).sum())
    magnitude_sum = total(absolute)
    # not below the smallest normal number, so that an all-zero gradient has norm 0 and not 0/0
    scale = (magnitude_sum / values.numel()).clamp_min(torch.finfo(wide).tiny)
    squares = []
    for piece in pieces(values):
        scaled = torch.div(piece.to(wide), scale, out=scratch.values(piece))
        squares.append(torch.dot(scaled, scaled))
    norm = scale * total(squares).sqrt()
    return GradientSums(magnitude_sum, total(signed), norm, total_count(zeros), total_count(finite))


def _ordinary_sums(values: Tensor, scratch: Scratch) -> GradientSums | None:
    """The same sums on a CPU in one go over the pieces; None where some element is not finite or a square is lost."""
    absolute = signed = square = zeros = 0.0
    for piece in pieces(values):
        piece = piece.to(wide_dtype(values))
        absolute += torch.abs(piece, out=scratch.values(piece)).sum().item()
        signed += piece.sum().item()
        square += torch.dot(piece, piece).item()
        zeros += torch.eq(piece, 0, out=scratch.flags(piece)).sum().item()
    numel = values.numel()
    if not math.isfinite(absolute) or not (_SQUARES[0] < square / numel < _SQUARES[1] or absolute == 0):
        return None
    return GradientSums(absolute, signed, math.sqrt(square), zeros, numel)


def gradient_statistics(sums: Tensor, numel: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """The published quantities of L layers in K steps, each (K, L), in float64.

    Args:
        sums: (K, L, 6), the values of `GradientSums` in its order, and how many numbers were summed (fewer than n for a
            sparse gradient).
        numel: (L,), n, elements of each weight.
        scale: (K, L), the loss scale that is still on the gradient; every value is divided by it.
    """
    absolute, signed, norm, zeros, finite, stored = sums.unbind(-1)
    nonfinite = stored - finite
    # the sum of magnitudes went beyond float32; so does the norm, for all that can be told
    norm = norm.masked_fill((nonfinite == 0) & absolute.isinf(), math.inf)
    return {
        "grad_mean_abs": absolute / numel / scale,
        "grad_mean": signed / numel / scale,
        "grad_rms": norm / numel.sqrt() / scale,
        "grad_zero_frac": (zeros + numel - stored) / numel,
        "grad_nonfinite": nonfinite,
    }


def depth_slope(rms: Tensor) -> Tensor:
    """Least-squares slope of log10 of the layers' `grad_rms` against depth 0, 1, 2, … in order of execution.

    10^slope is the factor by which the gradient grows from a layer to the next one, and shrinks on its way back:
    vanishing nets have slopes well above 0, exploding ones below. Layers without a gradient that is positive and
    finite are left out; NaN where fewer than two are left.

    Args:
        rms: (K, depths), of K steps, float64.

    Returns:
        (K,)
    """
    counts = (rms > 0) & rms.isfinite()
    weight = counts.double()
    depth = torch.arange(rms.shape[1], dtype=torch.float64)
    height = rms.where(counts, 1).log10()
    number = weight.sum(1)
    depth = depth - ((weight * depth).sum(1) / number)[:, None]
    slope = (weight * depth * height).sum(1) / (weight * depth.square()).sum(1)
    return slope.masked_fill(number < 2, math.nan)


def update_norms(before: Tensor, after: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """(‖after − before‖₂², ‖before‖₂²) of two flat tensors of one shape, each in float32 (float64 for float64)."""
    changes, sizes = [], []
    wide = wide_dtype(before)
    for old, new in zip(pieces(before), pieces(after), strict=True):
        old = old.to(wide)
        change = torch.sub(new.to(wide), old, out=scratch.values(old))
        changes.append(torch.dot(change, change))
        sizes.append(torch.dot(old, old))
    return total(changes), total(sizes)


def changed_share(before: Tensor, after: Tensor, gradient: Tensor) -> Tensor:
    """Share of the weights with a gradient other than 0 that a step changed, 0-dimensional; NaN where there are none.

    In 16 bits a weight keeps its value where the step is below half of what separates it from its neighbours.

    Args:
        before: the weights before the step, flat; as exact as after it.
        after: after it.
        gradient: that the step was made of, in the same order.
    """
    changed, reached = [], []
    for old, new, grad in zip(pieces(before), pieces(after), pieces(gradient), strict=True):
        there = grad != 0
        reached.append(there.sum())
        changed.append(there.logical_and_(old != new).sum())
    return total_count(changed) / total_count(reached)


def update_ratio(squares: Tensor) -> Tensor:
    """log10(‖Δw‖₂/‖w‖₂); −inf for a weight that did not move, NaN where there is no ratio.

    Args:
        squares: (…, 2), ‖Δw‖₂² and ‖w‖₂², float64.

    Returns:
        (…)
    """
    change, size = squares.unbind(-1)
    return ((change.log10() - size.log10()) / 2).masked_fill(~(size > 0), math.nan)
