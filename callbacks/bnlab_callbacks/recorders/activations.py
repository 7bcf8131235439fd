"""The recorder of activation functions: their outputs' moments, saturation and units in recorded training steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnlab_callbacks.core.hooks import ModuleHook
from bnlab_callbacks.core.naming import clean_name, name_calls
from bnlab_callbacks.core.ranks import Messages, Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.recorders.activation_calls import ActivationStep, Call, Outputs, describe, pack_calls
from bnlab_callbacks.recorders.forward_recorder import ForwardRecorder, Reader
from bnlab_callbacks.statistics.activations import (
    ACTIVATIONS,
    ActivationSums,
    activation_sums,
    is_small,
    saturation,
    unit_maximum,
)
from bnlab_callbacks.statistics.chunks import Scratch

# elements of small outputs that are kept at most: 8 MiB of float32
_KEPT = 1 << 21


class _Hook(ModuleHook):
    """A forward hook on an activation module.

    Attributes:
        wanted: whether some reader wants the layer.
    """

    into: ActivationRecorder

    def __init__(self, layer: str, module: nn.Module, unit_dim: int | None, into: ActivationRecorder) -> None:
        super().__init__(layer, into)
        self.bounds = saturation(module)
        self.unit_dim = unit_dim
        self.wanted = False

    def record(self, module: nn.Module, *given: Any) -> None:
        """Leave one call's sums with the recorder; only its units' maxima in a step that is not recorded."""
        output = given[-1]
        if not is_dense_float(output):
            return
        sums: ActivationSums | Outputs | None = None
        unit_max = None
        unit_dim = units_of(output.ndim, self.unit_dim) if self.wanted else None
        if self.into.recording and self.wanted:
            if self.into.may_keep(output):
                sums = Outputs(output.detach().clone(), self.bounds, unit_dim)
            else:
                sums = activation_sums(output.detach(), self.bounds, unit_dim, self.into.scratch)
                unit_max = sums.unit_max
        elif self.bounds.rectifier and unit_dim is not None:
            unit_max = unit_maximum(output.detach(), unit_dim)
        samples = output.shape[0] if output.ndim else 1
        self.into.calls.append(Call(self.layer, samples, output.numel(), sums, unit_max))


class ActivationRecorder(ForwardRecorder):
    """Records the outputs of activation modules, `nn.ReLU` and its like, in modules in training mode.

    A reader with the attribute `exact_dead` is given the calls of every batch, recorded or not, by its `take_units`.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.scratch = Scratch()
        self.calls: list[Call] = []
        self.layers: list[str] = []
        self.kept = 0  # elements of small outputs, which are kept as they are until they are read
        self._every_step = False
        self._hooks: list[_Hook] = []
        self._messages = Messages(ranks)
        super().__init__(model, ranks)

    def watch(self, model: nn.Module) -> None:
        """Hook every activation module."""
        for layer, module, unit_dim in find_activations(model):
            hook = _Hook(layer, module, unit_dim, self)
            self._hooks.append(hook)
            self.layers.append(layer)
            self.hooks.add(partial(module.register_forward_hook, hook))

    def join(self, reader: Any) -> None:
        """Record for one more reader."""
        super().join(reader)
        self._every_step |= reader.exact_dead
        for hook in self._hooks:
            hook.wanted |= reader.wants(hook.layer)

    def leave(self, reader: Reader) -> None:
        """Record no more for a reader."""
        super().leave(reader)
        self._every_step = any(other.exact_dead for other in self.readers)
        if not self.readers:
            self.scratch.clear()

    @property
    def listens(self) -> bool:
        """In all steps where dead units are to be exact."""
        return self.recording or self._every_step

    def may_keep(self, output: Tensor) -> bool:
        """Whether to keep a copy of `output` rather than to compute its sums now.

        Other ranks need each step's sums at once, and exact dead units its units.
        """
        if self.ranks.size > 1 or self._every_step or torch.compiler.is_compiling():
            return False
        if not is_small(output) or self.kept > _KEPT:
            return False
        self.kept += output.numel()
        return True

    def pop_calls(self) -> list[tuple[str, Call]]:
        """The batch's calls by name, also for the readers that count every batch."""
        calls = list(zip(name_calls(call.layer for call in self.calls), self.calls, strict=True))
        self.calls = []
        for reader in self.readers:
            if reader.exact_dead:
                reader.take_units(calls)
        return calls if self.recording else []

    def leave_step(self, moment: Moment, calls: list[tuple[str, Call]]) -> ActivationStep | None:
        """The step's calls and, with several ranks, their sums on all ranks, through one collective."""
        names = [name for name, _ in calls]
        measured = [(name, call) for name, call in calls if call.sums is not None]
        if self.ranks.size == 1:
            return ActivationStep(moment.step, names, measured, None) if measured else None
        vector, where = pack_calls(measured, self.ranks.device)
        ranks = self._messages.exchange(vector, describe(measured, where), self.failure is not None)
        return ActivationStep(moment.step, names, measured, (ranks, where))


def is_dense_float(output: Any) -> bool:
    """Whether the statistics are defined for `output`; not for tuples, nested and sparse tensors."""
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
