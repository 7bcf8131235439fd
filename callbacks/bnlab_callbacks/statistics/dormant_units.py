"""Dormant units: those whose outputs are small beside their layer's.

Sokar et al. 2023, The Dormant Neuron Phenomenon in Deep Reinforcement Learning, arXiv 2302.12902, definition 3.1.
"""

from torch import Tensor

# share of the layer's mean magnitude up to which a unit is dormant: τ of the paper's experiments
DORMANT = 0.025


def dormant_units(magnitudes: Tensor) -> Tensor:
    """Whether each unit is τ-dormant: E|h_i| / (Σ_j E|h_j| / units) ≤ τ = 0.025, and all if each E|h_j| is 0.

    Args:
        magnitudes: (…, units), the mean of |h| over samples and positions.

    Returns:
        (…, units), bool; False for a layer with magnitudes that are not finite.
    """
    mean = magnitudes.mean(-1, keepdim=True)
    return (magnitudes <= DORMANT * mean) & mean.isfinite()
