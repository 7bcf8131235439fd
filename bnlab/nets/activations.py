"""Activation functions by name, each with the family of initialization that suits it.

Thesis, section 2.10 (saturating and rectified nonlinearities), and sections 2.4.2 and 2.4.3 for the initialization.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from bnlab.errors import InputError


def require_choice(argument: str, value: object, choices: Sequence[str]) -> None:
    """Raise InputError, listing the valid names, unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{argument} {value!r} is unknown. Choose one of: {', '.join(choices)}.")


def require_at_least(argument: str, value: int, least: int) -> None:
    """Raise InputError unless `value` is `least` or more."""
    if value < least:
        raise InputError(
            f"{argument} is {value}, but must be {least} or more. "
            f"It comes from the data set: check that its images and labels are what you meant to load."
        )


# Literal, not str, so that --help lists the choices.
# About half of a rectifier's inputs give (almost) nothing, so its weight variance is doubled. ELU: section 7.1.1, "ReLU
# and ELU models according to the Kaiming" scheme. Softplus is a smooth ReLU by shape, though section 8.1.1 lists it as
# saturating.
Rectifier = Literal[
    "relu", "leaky_relu", "prelu", "elu", "selu", "gelu", "silu", "softplus", "relu6", "hardswish", "mish"
]
Saturating = Literal["sigmoid", "tanh", "softsign", "hardtanh"]  # close to linear around zero, flat at both ends
ActivationName = Literal[Rectifier, Saturating]
ACTIVATIONS: tuple[str, ...] = get_args(ActivationName)
InitFamily = Literal["kaiming", "xavier"]

_MODULES = {name.lower(): getattr(nn, name) for name in nn.modules.activation.__all__}  # leakyrelu → nn.LeakyReLU


def make_activation(name: ActivationName) -> nn.Module:
    """Return a fresh module for `name`, element-wise on any shape and never in place.

    Fresh, because monitors attach to one module per layer (and PReLU learns a slope per layer); not in place,
    because monitors read the layer's input as well as its output. An unknown name raises InputError.
    """
    require_choice("activation", name, ACTIVATIONS)
    module: nn.Module = _MODULES[name.replace("_", "")]()
    return module


def init_family(name: ActivationName) -> InitFamily:
    """Return the initialization for `name`: "kaiming" for rectifiers, "xavier" for saturating functions.

    An unknown name raises InputError.
    """
    require_choice("activation", name, ACTIVATIONS)
    return "kaiming" if name in get_args(Rectifier) else "xavier"
