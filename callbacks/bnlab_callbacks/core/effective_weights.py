"""Effective weights: what a layer computes with, where it holds something else, and the gradient with respect to it.

A pruned layer holds `weight_orig` and `weight_mask` (`torch.nn.utils.prune`), a weight-normed one a magnitude and a
direction (Salimans & Kingma 2016, arXiv 1602.07868), by `torch.nn.utils.weight_norm` or its parametrization. Nothing is
run for it: what a parametrization does in a forward pass (a power iteration, say) it would do once more.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

_PRUNED, _DIRECTION, _MAGNITUDE = "_orig", "_v", "_g"


class Held(NamedTuple):
    """A tensor that a module computes with, and the parameter that it is made of.

    Attributes:
        key: the tensor's name in its module.
        parameter: what is held of it, in its shape.
        inside: where, seen from the module: empty, or `parametrizations.<key>`.
    """

    key: str
    parameter: nn.Parameter
    inside: str = ""


def tensors_of(module: nn.Module) -> Iterator[Held]:
    """The tensors that a module computes with and trains, by their own names; no magnitudes of weight norms."""
    if isinstance(module, parametrize.ParametrizationList) and _pair_inside(module) is not None:
        return  # the module around it has given both
    own = dict(module.named_parameters(recurse=False))
    for name, parameter in own.items():
        key = _key_of(module, name)
        if key is not None:
            yield Held(key, parameter)
    for key, inner in _parametrizations(module).items():
        if (pair := _pair_inside(inner)) is not None:
            yield Held(key, pair.direction, f"parametrizations.{key}")
        elif isinstance(held := getattr(inner, "original", None), nn.Parameter):
            yield Held(key, held, f"parametrizations.{key}")


def partner(module: nn.Module, key: str) -> nn.Parameter | None:
    """The magnitude of a weight norm's tensor; None where there is none."""
    pair = _pair(module, key)
    return None if pair is None else pair.magnitude


def effective_values(module: nn.Module, key: str, parameter: Tensor) -> Tensor:
    """The tensor that the module computes with, without its graph, in the shape of `parameter`."""
    if module._parameters.get(key) is parameter:  # most
        return parameter.detach()
    if (mask := _mask(module, key)) is not None:
        return parameter.detach() * mask
    pair = _pair(module, key)
    return parameter.detach() if pair is None else pair.values()


def effective_gradient(module: nn.Module, key: str, parameter: Tensor) -> Tensor | None:
    """The gradient with respect to that tensor, from those that the last backward pass left; None without any."""
    if module._parameters.get(key) is parameter:
        return parameter.grad
    if (mask := _mask(module, key)) is not None and parameter.grad is not None:
        return parameter.grad * mask
    pair = _pair(module, key)
    return parameter.grad if pair is None else pair.gradient()


class _Pair(NamedTuple):
    """A weight norm: w = g·v/‖v‖, the norm taken over all dimensions but one, or over all (dim −1)."""

    magnitude: nn.Parameter  # g
    direction: nn.Parameter  # v
    dim: int

    def values(self) -> Tensor:
        """w, in the shape of v."""
        return torch._weight_norm(self.direction.detach(), self.magnitude.detach(), self.dim)

    def gradient(self) -> Tensor | None:
        """∂L/∂w = ‖v‖/g·∂L/∂v + ∂L/∂g·v/‖v‖: the part across w, and the part along it. A frozen part is 0."""
        across, along = self.direction.grad, self.magnitude.grad
        if across is None and along is None:
            return None
        v = self.direction.detach()
        wide = v if v.dtype == torch.float64 else v.float()
        norm = torch.norm_except_dim(wide, 2, self.dim)
        g = self.magnitude.detach().to(wide.dtype)
        gradient = torch.zeros_like(wide)
        if across is not None:
            gradient += across * torch.where(g == 0, 0.0, norm / g)  # of w = 0 no direction has a gradient
        if along is not None:
            gradient += along * wide / norm
        return gradient


def _key_of(module: nn.Module, name: str) -> str | None:
    """The name of the tensor that a parameter is held for; None for the magnitude of a weight norm."""
    if name.endswith(_PRUNED) and isinstance(getattr(module, name.removesuffix(_PRUNED), None), Tensor):
        return name.removesuffix(_PRUNED)
    if name.endswith((_DIRECTION, _MAGNITUDE)) and _pair(module, name[:-2]) is not None:
        return name[:-2] if name.endswith(_DIRECTION) else None
    return name


def _mask(module: nn.Module, key: str) -> Tensor | None:
    return module._buffers.get(f"{key}_mask") if f"{key}{_PRUNED}" in module._parameters else None


def _pair(module: nn.Module, key: str) -> _Pair | None:
    if (inner := _parametrizations(module).get(key)) is not None:
        return _pair_inside(inner)
    magnitude, direction = (module._parameters.get(f"{key}{end}") for end in (_MAGNITUDE, _DIRECTION))
    if magnitude is None or direction is None:
        return None
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm) and hook.name == key)
    return next((_Pair(magnitude, direction, hook.dim) for hook in hooks), None)


def _pair_inside(inner: nn.Module) -> _Pair | None:
    steps = list(inner.children())
    if len(steps) != 1 or not isinstance(steps[0], _WeightNorm):
        return None
    return _Pair(inner.original0, inner.original1, steps[0].dim)  # type: ignore[arg-type]


def _parametrizations(module: nn.Module) -> dict[str, nn.Module]:
    return dict(module.parametrizations.items()) if parametrize.is_parametrized(module) else {}  # type: ignore[union-attr, operator]
