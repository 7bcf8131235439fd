"""What counts as an activation: torch's functions and methods, its modules, and composites that others write."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor, nn

from bnlab_callbacks.statistics.activations import ACTIVATIONS, Saturation, saturation

# function or method, without the `_` of those that work in place → its module, and what that takes behind the input
_FUNCTIONS: dict[str, tuple[type[nn.Module] | None, tuple[str, ...]]] = {
    "relu": (nn.ReLU, ()),
    "relu6": (nn.ReLU6, ()),
    "leaky_relu": (nn.LeakyReLU, ("negative_slope",)),
    "prelu": (None, ()),
    "rrelu": (nn.RReLU, ("lower", "upper")),
    "elu": (nn.ELU, ("alpha",)),
    "selu": (nn.SELU, ()),
    "celu": (nn.CELU, ("alpha",)),
    "gelu": (nn.GELU, ("approximate",)),
    "silu": (nn.SiLU, ()),
    "mish": (nn.Mish, ()),
    "softplus": (nn.Softplus, ("beta", "threshold")),
    "sigmoid": (nn.Sigmoid, ()),
    "special_expit": (nn.Sigmoid, ()),
    "logsigmoid": (nn.LogSigmoid, ()),
    "log_sigmoid": (nn.LogSigmoid, ()),
    "hardsigmoid": (nn.Hardsigmoid, ()),
    "hardswish": (nn.Hardswish, ()),
    "hardtanh": (nn.Hardtanh, ("min_val", "max_val")),
    "tanh": (nn.Tanh, ()),
    "softsign": (nn.Softsign, ()),
    "glu": (None, ()),
    "threshold": (nn.Threshold, ("threshold", "value")),
    "hardshrink": (nn.Hardshrink, ("lambd",)),
    "softshrink": (nn.Softshrink, ("lambd",)),
    "tanhshrink": (nn.Tanhshrink, ()),
}
_NAMES = {name + end: name for name in _FUNCTIONS for end in ("", "_")} | {"_threshold": "threshold"}
_SHOWN = {"special_expit": "sigmoid", "log_sigmoid": "logsigmoid"}
# class names of composites: `QuickGELUActivation`, `HardSwish`; not `SigmoidFocalLoss`, nor `Prelude`
_COMPOSITE = re.compile(
    r"(?i:relu|gelu|silu|swish|mish|sigmoid|softplus|softsign|snake)|[CS]?ELU|GLU|Glu(?![a-z])|Tanh"
)
_NO_COMPOSITE = re.compile(r"(?i:loss|criterion|norm|conv|linear|attention|metric|pool)")


class Kind(NamedTuple):
    """An activation function with its arguments.

    Attributes:
        name: `relu`, `hardtanh`; that of a composite's class.
        module: a module that computes the same, where there is one.
        bounds: where it saturates, and whether its units can die.
    """

    name: str
    module: nn.Module | None
    bounds: Saturation


def kind_of_module(module: nn.Module) -> Kind:
    """The kind of an activation module, or of a composite of which nothing is known."""
    return Kind(type(module).__name__, module, saturation(module))


def kind_of_call(function: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Kind | None:
    """The kind of a call of a torch function, by its name; None where that is no activation's.

    `hardtanh` from 0 to 6 is `relu6`, whoever wrote it.
    """
    name = _NAMES.get(function)
    if name is None:
        return None
    takes = _FUNCTIONS[name][1]
    given = {**dict(zip(takes, args[1:], strict=False)), **{key: kwargs[key] for key in takes if key in kwargs}}
    known = {key: value for key, value in given.items() if isinstance(value, int | float | str)}
    return _kind(name, tuple(known.items()), len(known) == len(given))


@lru_cache(maxsize=256)
def _kind(name: str, given: tuple[tuple[str, Any], ...], whole: bool) -> Kind:
    if name == "hardtanh" and tuple(sorted(dict(given).values())) == (0, 6):
        name, given = "relu6", ()
    kind = _FUNCTIONS[name][0]
    module = kind(**dict(given)) if kind is not None and whole else None
    shown = _SHOWN.get(name, name)
    if module is None:
        return Kind(shown, None, Saturation())
    return Kind(shown, module, saturation(module))


def is_composite(module: nn.Module) -> bool:
    """Whether it is an activation by its class's name: without modules or parameters of its own, and none of torch's.

    Such as transformers' `NewGELUActivation`, which calls a tanh, and timm's `Swish`.
    """
    name = type(module).__name__
    if isinstance(module, ACTIVATIONS) or _COMPOSITE.search(name) is None or _NO_COMPOSITE.search(name) is not None:
        return False
    return next(module.children(), None) is None and next(module.parameters(), None) is None


def tensor_of(output: Any) -> Tensor | None:
    """The tensor that an output is, or wraps: a tuple's first, `GeometricTensor.tensor`, `QuantTensor.value`."""
    if isinstance(output, Tensor):
        return output
    for name in ("tensor", "value", "data"):
        held = getattr(output, name, None)
        if isinstance(held, Tensor):
            return held
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    return None
