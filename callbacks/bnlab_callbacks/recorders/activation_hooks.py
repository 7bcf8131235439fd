"""Hooks on activation modules: which modules, which of their dimensions are units, and what each call leaves."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnlab_callbacks.core.device import Change
from bnlab_callbacks.core.forward_order import Gate
from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.statistics.activations import (
    ACTIVATIONS,
    ActivationSums,
    Saturation,
    activation_sums,
    is_rectifier,
    is_small,
    saturation,
    unit_maximum,
)
from bnlab_callbacks.statistics.chunks import Scratch

# elements of small outputs that are kept at most: 8 MiB of float32
_KEPT = 1 << 21


class Outputs(NamedTuple):
    """A copy of a small output, whose sums are computed together with those of the next steps'."""

    values: Tensor  # (N, …)
    bounds: Saturation
    unit_dim: int | None


class Call(NamedTuple):
    """One firing of a hook."""

    layer: str
    samples: int
    numel: int
    sums: (
        ActivationSums | Outputs | None
    )  # None for a layer that the filter keeps out, and in steps that are not recorded
    unit_max: Tensor | None  # (units,): largest output of each unit, for rectifiers

    def change_tensors(self, change: Change) -> Call:
        """The same with other tensors in its sums; a copied output is on the host."""
        if not isinstance(self.sums, ActivationSums):
            return self
        fields: list[Any] = [None if one is None else change(one) for one in self.sums]
        return self._replace(sums=ActivationSums(*fields))


class _Inert:
    """What a hook becomes in a copy of its module (an EMA, a pickle): it does nothing."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        pass


class Hook:
    """A forward hook and what it must know of its module; an object, since closures cannot be pickled."""

    def __init__(self, layer: str, module: nn.Module, unit_dim: int | None, wanted: bool, into: Recorder) -> None:
        self.layer = layer
        self.bounds = saturation(module)
        self.rectifier = is_rectifier(module)
        self.unit_dim = unit_dim
        self.wanted = wanted
        self.into = into

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        compiling = torch.compiler.is_compiling()
        if compiling:
            self.into.gate.compiled = True
        if not (self.into.gate.open or self.into.every_step.open) or not module.training:
            return
        if compiling:
            self.record(output)
            return
        start = perf_counter()
        try:
            self.record(output)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            self.into.failure = f"{type(error).__name__} at {self.layer}: {error}"
        self.into.spent += perf_counter() - start

    def record(self, output: Any) -> None:
        """Leave one call's sums with the recorder; only its units' maxima in a step that is not recorded."""
        if not is_dense_float(output):
            return
        sums: ActivationSums | Outputs | None = None
        unit_max = None
        unit_dim = units_of(output.ndim, self.unit_dim) if self.rectifier and self.wanted else None
        if self.into.gate.open and self.wanted:
            if self.into.may_keep(output):
                sums = Outputs(output.detach().clone(), self.bounds, unit_dim)
            else:
                sums = activation_sums(output.detach(), self.bounds, unit_dim, self.into.scratch)
                unit_max = sums.unit_max
        elif unit_dim is not None:
            unit_max = unit_maximum(output.detach(), unit_dim)
        samples = output.shape[0] if output.ndim else 1
        self.into.calls.append(Call(self.layer, samples, output.numel(), sums, unit_max))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Inert:
        return _Inert()

    def __reduce__(self) -> tuple[type[_Inert], tuple[()]]:
        return _Inert, ()


class Recorder:
    """What all hooks of one monitor share: the switch, the buffers, and the list of calls, in order of execution."""

    def __init__(self) -> None:
        self.gate = Gate()  # open in steps that are recorded
        self.every_step = Gate()  # open in all steps, for rectifiers' units
        self.spent = 0.0  # seconds
        self.scratch = Scratch()
        self.calls: list[Call] = []
        self.failure: str | None = None
        self.keep_small = False  # whether small outputs may be kept as they are, until the next publication
        self.kept = 0  # elements

    def may_keep(self, output: Tensor) -> bool:
        """Whether to keep a copy of `output` rather than to compute its sums now."""
        if not self.keep_small or torch.compiler.is_compiling() or not is_small(output) or self.kept > _KEPT:
            return False
        self.kept += output.numel()
        return True


def is_dense_float(output: Any) -> bool:
    """Whether the statistics are defined for `output`; tuples, nested and sparse tensors are passed over."""
    return (
        isinstance(output, Tensor)
        and output.is_floating_point()
        and not output.is_nested
        and output.layout == torch.strided
        and output.numel() > 0
    )


def find_activations(model: nn.Module) -> Iterator[tuple[str, nn.Module, int | None]]:
    """Activation modules in order of definition: layer name, module, dimension of its units if the model tells it.

    Units lie in the last dimension behind a linear layer and in dimension 1 behind a convolution, and the layer that
    was defined last before the activation decides.
    """
    unit_dim: int | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            unit_dim = -1
        elif isinstance(module, nn.modules.conv._ConvNd):  # transposed ones too
            unit_dim = 1
        elif isinstance(module, ACTIVATIONS):
            yield clean_name(name), module, unit_dim


def units_of(ndim: int, known: int | None) -> int:
    """Dimension of the units of an output with `ndim` dimensions: as known, else the last of (N, T, F), else 1."""
    if known is None:
        known = -1 if ndim == 3 else 1
    return min(known, ndim - 1) if ndim > 1 else 0
