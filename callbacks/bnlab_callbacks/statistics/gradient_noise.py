"""The gradient noise scale: how many samples a batch needs for noise and signal of its gradient to weigh alike.

McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv 1812.06162, appendix A.1. From gradients of
two batch sizes, the parts of a batch and the whole, come unbiased estimates of |G|², the squared length of the true
gradient, and of tr(Σ), the variance of a single sample's. Their means over many steps are divided, not each step's.
"""

from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """Unbiased estimates from one batch, 0-dimensional; each may be below 0."""

    signal: Tensor  # |G|²
    noise: Tensor  # tr(Σ)


def estimate(small: Tensor, big: Tensor, parts: int, samples: float) -> Estimate:
    """Signal and noise, from n parts of a batch.

    Args:
        small: mean over the parts of the squared length of each part's mean gradient.
        big: squared length of the whole batch's mean gradient.
        parts: n, 2 or more.
        samples: of one part.
    """
    return Estimate(
        signal=(parts * big - small) / (parts - 1),
        noise=samples * parts * (small - big) / (parts - 1),
    )


def noise_scale(signal: float, noise: float) -> float:
    """tr(Σ) / |G|², in samples; infinite where the signal is lost in the noise."""
    return noise / signal if signal > 0 else float("inf")
