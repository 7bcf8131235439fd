"""The weight tensors that gradient diagnostics watch: which, under what names, and what they hold."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from bnlab_callbacks.core.effective_weights import effective_gradient, effective_values, partner, tensors_of
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
    """A tensor of a layer that is watched; by its effective values, where it is pruned or weight-normed."""

    layer: str
    module: str  # name of the module that holds its parameter
    parameter: nn.Parameter
    owner: nn.Module  # that computes with it
    key: str  # its name there
    vector: bool = False  # a bias, a scale or the like, and no layer's weights

    @property
    def has_gradient(self) -> bool:
        """Whether the last backward pass reached it."""
        if self.parameter.grad is None:  # most of those without
            other = self.partner
            return other is not None and other.grad is not None
        return self.parameter.grad.numel() > 0

    @property
    def partner(self) -> nn.Parameter | None:
        """The magnitude that belongs to it, if it is weight-normed."""
        return None if self.is_plain else partner(self.owner, self.key)

    @property
    def trained(self) -> bool:
        """Whether it is trainable."""
        other = self.partner
        return self.parameter.requires_grad or (other is not None and other.requires_grad)

    @property
    def is_plain(self) -> bool:
        """Whether it is held as it is."""
        return self.owner._parameters.get(self.key) is self.parameter

    @property
    def gradient(self) -> Tensor:
        """Its gradient, where it has one."""
        gradient = effective_gradient(self.owner, self.key, self.parameter)
        assert gradient is not None
        return gradient

    @property
    def values(self) -> Tensor:
        """Its numbers as they are now."""
        return effective_values(self.owner, self.key, self.parameter)

    @property
    def numel(self) -> int:
        """Real numbers in it."""
        return self.parameter.numel() * (2 if self.parameter.is_complex() else 1)


def find_weights(model: nn.Module, frozen: bool = False, vectors: bool = False) -> list[Weight]:
    """Parameters with two or more dimensions and flat weights, in order of definition; a shared one once.

    The layer is called like its module where that holds one such parameter named `weight`, else `<module>.<parameter>`,
    as all vectors are; a name that is taken gets `.2` at its end. Lazy parameters come once they have their shapes.

    Args:
        model: the model.
        frozen: whether those that are not trainable are given, too.
        vectors: whether all other parameters are, too: biases, scales, and what else has one dimension or none.
    """
    found: list[Weight] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = _weights_of(name, module)
        weights = [weight for weight in own if not weight.vector]
        trained = [weight.key for weight in weights if weight.trained]
        for weight in own if vectors else weights:
            if id(weight.parameter) not in seen and (frozen or weight.trained):
                seen.add(id(weight.parameter))
                keys = trained if weight.trained else [each.key for each in weights]
                alone = keys == ["weight"] and not weight.vector
                layer = clean_name(name if alone else f"{name}.{weight.key}") or weight.key
                found.append(weight._replace(layer=layer))
    return _with_unique_names(found)


def _weights_of(name: str, module: nn.Module) -> list[Weight]:
    """Those of one module, not yet named."""
    return [
        Weight(
            "",
            f"{name}.{held.inside}".strip("."),
            held.parameter,
            module,
            held.key,
            held.parameter.ndim < 2 and not is_flat(module, held.key, held.parameter),
        )
        for held in tensors_of(module)
        if not isinstance(held.parameter, UninitializedParameter)
    ]


def _with_unique_names(found: Sequence[Weight]) -> list[Weight]:
    """Names of weights do not depend on whether vectors are there."""
    used: set[str] = set()
    named: dict[int, str] = {}
    for weight in sorted(found, key=lambda each: each.vector):
        layer = weight.layer
        repeats = (f"{layer}.{repeat}" for repeat in count(2))
        while layer in used:
            layer = next(repeats)
        used.add(layer)
        named[id(weight.parameter)] = layer
    return [weight._replace(layer=named[id(weight.parameter)]) for weight in found]


def holders(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold parameters of their own, with their names."""
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield name, module


def lazy_layers(model: nn.Module) -> list[str]:
    """Names of layers that have no shape yet, with those of their modules."""
    lazy = [name for name, one in model.named_parameters() if isinstance(one, UninitializedParameter)]
    return [clean_name(name) for one in lazy for name in (one.rpartition(".")[0], one)]


def is_flat(module: nn.Module, key: str, parameter: Tensor) -> bool:
    """Whether a parameter is all weights between several inputs and outputs in one dimension, as in e3nn and escnn.

    It is where it is called a weight and its module, none of PyTorch's and no norm, names what comes in and what goes
    out (`irreps_in` and `irreps_out`, `in_type` and `out_type`): whatever has fans says so. A gain has neither.
    """
    kind = type(module)
    if not key.startswith("weight") or kind.__module__.startswith("torch.") or "norm" in kind.__name__.lower():
        return False
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
    if is_flat(module, key, parameter):
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
