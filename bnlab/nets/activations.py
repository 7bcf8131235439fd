"""Activation functions by name, each with the family of initialization that suits it.

Thesis, section 2.10 (saturating and rectified nonlinearities), and sections 2.4.2 and 2.4.3 for the initialization.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

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


# Literal, not str, so that --help lists the choices; a test keeps it equal to the table.
ActivationName = Literal[
    "relu",
    "leaky_relu",
    "prelu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "softplus",
    "relu6",
    "hardswish",
    "mish",
    "sigmoid",
    "tanh",
    "softsign",
    "hardtanh",
]
InitFamily = Literal["kaiming", "xavier"]


class _Entry(NamedTuple):
    factory: Callable[[], nn.Module]
    family: InitFamily


_TABLE: dict[ActivationName, _Entry] = {
    # Rectifiers: about half of the inputs give (almost) nothing, so the weight variance is doubled.
    "relu": _Entry(nn.ReLU, "kaiming"),
    "leaky_relu": _Entry(nn.LeakyReLU, "kaiming"),
    "prelu": _Entry(nn.PReLU, "kaiming"),
    "elu": _Entry(nn.ELU, "kaiming"),  # section 7.1.1: "ReLU and ELU models according to the Kaiming" scheme
    "selu": _Entry(nn.SELU, "kaiming"),
    "gelu": _Entry(nn.GELU, "kaiming"),
    "silu": _Entry(nn.SiLU, "kaiming"),
    "softplus": _Entry(nn.Softplus, "kaiming"),  # a smooth ReLU by shape, though section 8.1.1 lists it as saturating
    "relu6": _Entry(nn.ReLU6, "kaiming"),
    "hardswish": _Entry(nn.Hardswish, "kaiming"),
    "mish": _Entry(nn.Mish, "kaiming"),
    # Saturating: close to linear around zero, flat at both ends.
    "sigmoid": _Entry(nn.Sigmoid, "xavier"),
    "tanh": _Entry(nn.Tanh, "xavier"),
    "softsign": _Entry(nn.Softsign, "xavier"),
    "hardtanh": _Entry(nn.Hardtanh, "xavier"),
}

ACTIVATIONS: tuple[str, ...] = tuple(_TABLE)


def make_activation(name: ActivationName) -> nn.Module:
    """Return a fresh module for `name`, element-wise on any shape and never in place.

    Fresh, because monitors attach to one module per layer (and PReLU learns a slope per layer); not in place,
    because monitors read the layer's input as well as its output. An unknown name raises InputError.
    """
    require_choice("activation", name, ACTIVATIONS)
    return _TABLE[name].factory()


def init_family(name: ActivationName) -> InitFamily:
    """Return the initialization for `name`: "kaiming" for rectifiers, "xavier" for saturating functions.

    An unknown name raises InputError.
    """
    require_choice("activation", name, ACTIVATIONS)
    return _TABLE[name].family
