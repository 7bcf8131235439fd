"""The parts of a net that advice asks for: norms, and kinds of activation functions."""

from collections.abc import Iterator

from torch import nn

from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.core.weights import find_weights

_LEAKY = (nn.CELU, nn.ELU, nn.GELU, nn.LeakyReLU, nn.Mish, nn.PReLU, nn.RReLU, nn.SELU, nn.SiLU)
_UNSATURATED = (*_LEAKY, nn.ReLU, nn.ReLU6, nn.Softplus, nn.Hardswish)


def parts_of(model: nn.Module) -> frozenset[str]:
    """Which of `norm`, `unsaturated` and `leaky` (activation functions, as modules) a net has.

    A norm is told by its class's name, since many bring their own.
    """
    return frozenset(part for module in model.modules() for part in _parts(module))


def _parts(module: nn.Module) -> Iterator[str]:
    if "norm" in type(module).__name__.lower():  # weight norms are no modules
        yield "norm"
    if isinstance(module, _UNSATURATED):
        yield "unsaturated"
    if isinstance(module, _LEAKY):
        yield "leaky"


def inputs_of_units(model: nn.Module) -> dict[str, int]:
    """Linear and convolution layers → inputs of a unit, by which He's initialization is scaled."""
    modules = dict(model.named_modules())
    return {
        clean_name(weight.layer): weight.parameter[0].numel()
        for weight in find_weights(model)
        if isinstance(modules[weight.module], nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
