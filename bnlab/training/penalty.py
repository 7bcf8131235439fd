"""The thesis's L2 penalty (section 2.12.2, equations 2.41 and 2.43): λ‖w‖₂² over the weights, not the biases.

Its gradient is 2λw, so PyTorch's `weight_decay`, which adds weight_decay·w, must be 2λ, and only for weights: neither
biases nor batch norm's γ and β are penalised.
"""

from typing import Any

import torch
from torch import Tensor, nn


def penalised_weights(net: nn.Module) -> list[nn.Parameter]:
    """Weights of the linear and convolution layers."""
    layers = (module for module in net.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    return [layer.get_parameter("weight") for layer in layers]


def parameter_groups(net: nn.Module, strength: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer that add the gradient of λ‖w‖₂², λ = `strength`, to the data loss's."""
    weights = penalised_weights(net)
    chosen = {id(weight) for weight in weights}
    others = [parameter for parameter in net.parameters() if id(parameter) not in chosen]
    groups = [{"params": weights, "weight_decay": 2 * strength}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def penalty(net: nn.Module, strength: float) -> Tensor:
    """λ‖w‖₂² now, as a 0-dimensional tensor; 0 without a pass over the weights when λ is 0."""
    weights = [weight.detach() for weight in penalised_weights(net)]
    if strength == 0:
        return weights[0].new_zeros(())
    return strength * torch.stack(torch._foreach_norm(weights)).square().sum()
