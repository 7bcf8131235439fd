"""The weight tensors that gradient diagnostics watch: which, under what names, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from bnlab_callbacks.core.naming import clean_name


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


def find_weights(model: nn.Module) -> Iterator[Weight]:
    """Trainable parameters with two or more dimensions, in order of definition; a shared one once.

    The layer is called like its module where that holds one such parameter named `weight`, else `<module>.<parameter>`.
    """
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = {
            key: parameter
            for key, parameter in module.named_parameters(recurse=False)
            if not isinstance(parameter, UninitializedParameter) and parameter.ndim > 1 and parameter.requires_grad
        }
        for key, parameter in own.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                layer = name if list(own) == ["weight"] else f"{name}.{key}"
                yield Weight(clean_name(layer) or key, name, parameter)


def real(tensor: Tensor) -> Tensor:
    """A complex tensor's parts, as real numbers; another one as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
