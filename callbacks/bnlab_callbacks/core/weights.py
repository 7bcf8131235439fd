"""The weight tensors that gradient diagnostics watch: which, under what names, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from bnlab_callbacks.core.naming import clean_name

# modules that multiply what comes in by their weights, and what they hold beside these
_MULTIPLY = (
    nn.Linear,
    nn.Bilinear,
    _ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Embedding,
    nn.EmbeddingBag,
)
_NO_WEIGHTS = ("weight_g", "bias_k", "bias_v")  # magnitudes of a weight norm, tokens that attention appends


class Weight(NamedTuple):
    """A weight tensor that is watched."""

    layer: str
    module: str  # name of the module that holds it
    parameter: nn.Parameter

    @property
    def has_gradient(self) -> bool:
        """Whether the last backward pass reached it."""
        return self.parameter.grad is not None and self.parameter.grad.numel() > 0

    @property
    def gradient(self) -> Tensor:
        """Its gradient, where it has one."""
        assert self.parameter.grad is not None
        return self.parameter.grad

    @property
    def numel(self) -> int:
        """Real numbers in it."""
        return self.parameter.numel() * (2 if self.parameter.is_complex() else 1)


def find_weights(model: nn.Module, frozen: bool = False) -> Iterator[Weight]:
    """Parameters with two or more dimensions and flat weights, in order of definition; a shared one once.

    The layer is called like its module where that holds one such parameter named `weight`, else `<module>.<parameter>`.

    Args:
        model: the model.
        frozen: whether those that are not trainable are given, too.
    """
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = {
            key: parameter
            for key, parameter in module.named_parameters(recurse=False)
            if not isinstance(parameter, UninitializedParameter) and (parameter.ndim > 1 or is_flat(module, key))
        }
        trained = [key for key, parameter in own.items() if parameter.requires_grad]
        for key, parameter in own.items():
            if id(parameter) not in seen and (frozen or parameter.requires_grad):
                seen.add(id(parameter))
                alone = (trained if parameter.requires_grad else list(own)) == ["weight"]
                yield Weight(clean_name(name if alone else f"{name}.{key}") or key, name, parameter)


def is_flat(module: nn.Module, key: str) -> bool:
    """Whether a parameter is all weights between several inputs and outputs in one dimension, as in e3nn and escnn.

    It is where it is called a weight and its module, none of PyTorch's and no norm, names what comes in and what goes
    out (`irreps_in` and `irreps_out`, `in_type` and `out_type`): whatever has fans says so. A gain has neither.
    """
    kind = type(module)
    if not key.startswith("weight") or kind.__module__.startswith("torch.") or "norm" in kind.__name__.lower():
        return False
    parameter = getattr(module, key)
    words = {word.rstrip("0123456789") for name in vars(module) for word in name.split("_")}
    return parameter.ndim == 1 and parameter.numel() > 1 and {"in", "out"} <= words


def is_layer(module: nn.Module, key: str, parameter: Tensor) -> bool:
    """Whether a parameter is a layer's weights, as far as its module and its shape tell: it has fans.

    It is in a module that multiplies by its weights (linear, convolution, recurrent, attention, embedding), and else
    where two dimensions at least are longer than 1 and not all numbers are the same, or where it is flat. Gains, logit
    scales, tokens and magnitudes are of one dimension, whatever ones stand beside it, or begin as a constant; so do
    norms' scales over (C, H, W). `diagnosis.watching.loss_graph` tells more, once the loss is there.
    """
    if isinstance(module, _MULTIPLY):
        return parameter.ndim > 1 and key not in _NO_WEIGHTS
    if type(module).__module__.startswith("torch.nn.modules."):
        return False  # norms, PReLU
    if is_flat(module, key):
        return True
    return sum(size > 1 for size in parameter.shape) > 1 and not is_constant(parameter)


def multiplies(module: nn.Module) -> bool:
    """Whether a module is known to multiply what comes in by its weights."""
    return isinstance(module, _MULTIPLY)


def is_constant(parameter: Tensor) -> bool:
    """Whether all its numbers are equal."""
    if parameter.layout != torch.strided or parameter.is_complex() or parameter.device.type == "meta":
        return False
    low, high = torch.aminmax(parameter.detach())
    return bool(low == high)


def real(tensor: Tensor) -> Tensor:
    """A complex tensor's parts, as real numbers; another one as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
