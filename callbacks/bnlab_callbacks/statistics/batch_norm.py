"""Statistics of a batch-norm layer: the gap between its two modes, its scale and shift. Pure functions.

A layer normalises a training batch by the batch's own mean μ_B and biased variance σ²_B,
y = γ(x − μ_B)/√(σ²_B + ε) + β; evaluation mode puts the running μ_run and σ²_run in their place (Ioffe & Szegedy 2015;
Schilling 2016, chapter 5).
"""

import torch.nn.functional as F
from torch import Tensor

from bnlab_callbacks.statistics.chunks import wide_dtype

# |γ| below which a channel counts as switched off
SMALL_SCALE = 0.05


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel, (C,) each, in float32 (float64 for float64).

    Args:
        x: (N, C, …), floating point, with at least two values a channel.
    """
    wide = x.to(wide_dtype(x))
    mean, variance = wide.new_zeros(x.shape[1]), wide.new_ones(x.shape[1])
    # the layer's own kernel, through running statistics that keep nothing: on CPUs two to ten times as fast as var_mean
    F.batch_norm(wide, mean, variance, training=True, momentum=1.0)
    return mean, variance


def running_gap(x: Tensor, running_mean: Tensor, running_variance: Tensor, eps: float) -> dict[str, Tensor]:
    """How far the running statistics are from those of a batch; 0-dimensional tensors on the device of `x`.

    - `bn_drift`: mean over channels of |μ_run − μ_B| / √(σ²_B + ε), with the biased σ²_B that the layer divides by: how
      far evaluation mode shifts the normalised values, in their own unit
    - `bn_logvar`: mean over channels of |ln((σ²_run + ε) / (s²_B + ε))|, with the unbiased s²_B that the layer adds to
      σ²_run: twice the logarithm of how much evaluation mode rescales them

    Args:
        x: (N, C, …), the layer's input, floating point, with n ≥ 2 values a channel; half precision is widened first.
        running_mean: (C,), μ_run before the layer saw `x`.
        running_variance: (C,), σ²_run before the layer saw `x`.
        eps: ε of the layer, added to every variance as the layer itself does.
    """
    mean, unbiased = batch_moments(x)
    n = x.numel() // x.shape[1]
    spread = (unbiased * ((n - 1) / n) + eps).sqrt()
    ratio = (running_variance.to(unbiased.dtype) + eps) / (unbiased + eps)
    return {
        "bn_drift": ((running_mean.to(mean.dtype) - mean).abs() / spread).mean(),
        "bn_logvar": ratio.log().abs().mean(),
    }


def affine_statistics(gamma: Tensor | None, beta: Tensor | None) -> dict[str, Tensor]:
    """Statistics of a layer's scale γ and shift β, 0-dimensional tensors; none of a parameter that the layer lacks.

    - `bn_gamma_mean`: Σγ/C; `bn_gamma_absmin`: min|γ|; `bn_gamma_small_frac`: share of channels with |γ| < 0.05
    - `bn_beta_mean`: Σβ/C

    Args:
        gamma: (C,), the layer's `weight`.
        beta: (C,), the layer's `bias`.
    """
    values: dict[str, Tensor] = {}
    if gamma is not None:
        gamma = gamma.detach().to(wide_dtype(gamma))
        size = gamma.abs()
        small = (size < SMALL_SCALE).to(gamma.dtype)
        values["bn_gamma_mean"] = gamma.mean()
        values["bn_gamma_absmin"] = size.amin()
        values["bn_gamma_small_frac"] = small.mean()
    if beta is not None:
        values["bn_beta_mean"] = beta.detach().to(wide_dtype(beta)).mean()
    return values


def values_a_channel(x: Tensor) -> int:
    """Samples times positions of a batch (N, C, …)."""
    return x.numel() // x.shape[1] if x.ndim > 1 and x.shape[1] else 0
