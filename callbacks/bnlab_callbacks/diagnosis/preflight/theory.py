"""Theory of a layer's effect on the scale of signals and gradients, from its weights and the activation before it.

For independent weights of mean square s and n inputs of mean square q, a linear layer's outputs have variance n·s·q
(He et al. 2015, Delving Deep into Rectifiers, equations 7 to 14; Glorot & Bengio 2010, equations 5 to 9). With inputs
φ(z), z Gaussian, q is E[φ(z)²], computed here numerically for whatever φ is; backward, E[φ'(z)²] takes its place.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

# standard deviations either way (the rest weighs 1e-15); an even number of points: none on a kink at the mean
_REACH, _POINTS = 8.0, 4000


class Moments(NamedTuple):
    """Of an activation φ under a Gaussian z."""

    square: float  # E[φ(z)²]
    slope_square: float  # E[φ'(z)²]


def gaussian_moments(activation: nn.Module, mean: float, std: float) -> Moments:
    """Second moments of an element-wise activation's outputs and slopes for Gaussian inputs.

    Args:
        activation: the module; a copy is run in float64, in evaluation mode.
        mean: of the inputs.
        std: of the inputs.
    """
    phi = copy.deepcopy(activation).cpu().double().eval()
    normal = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
    density = torch.exp(-normal.square() / 2)
    density /= density.sum()
    # (1, 1, points): PReLU takes dimension 1 for its channels
    z = (mean + std * normal).reshape(1, 1, -1).requires_grad_()
    with torch.enable_grad():
        slopes = getattr(phi, "num_parameters", 1)
        output = phi(z.expand(1, slopes, -1).clone())  # it may work in place
        (slope,) = torch.autograd.grad(output.sum() / slopes, z)
    square = (output.detach().square().mean(1).flatten() * density).sum()
    return Moments(float(square), float((slope.flatten().square() * density).sum()))


def fan_scales(weight: Tensor, transposed: bool = False) -> tuple[float, float]:
    """Mean square of a linear or convolution layer's weights times their number per output, and per input.

    Args:
        weight: (out, in, …), of a transposed convolution (in, out, …).
        transposed: whether it is one.
    """
    square = float(weight.detach().double().square().mean())
    area = weight[0, 0].numel()
    per_first, per_second = weight.shape[1] * area, weight.shape[0] * area
    return (square * per_second, square * per_first) if transposed else (square * per_first, square * per_second)
