"""The recorder of activation functions: their outputs' moments, saturation and units in recorded training steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnlab_callbacks.core.function_mode import FunctionMode
from bnlab_callbacks.core.hooks import ModuleHook
from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.core.ranks import Messages, Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.recorders.activation_calls import (
    ActivationStep,
    Call,
    Mark,
    Outputs,
    describe,
    pack_calls,
    reduce_outputs,
    with_sums,
)
from bnlab_callbacks.recorders.activation_kinds import Kind, is_composite, kind_of_module, tensor_of
from bnlab_callbacks.recorders.call_names import CallKey, CallNames
from bnlab_callbacks.recorders.forward_recorder import ForwardRecorder, Reader
from bnlab_callbacks.recorders.functional_activations import FunctionalActivations, is_checkpointed, is_transformed
from bnlab_callbacks.recorders.unseen import EVALUATION, NO_GRADIENT, TRANSFORMED, UNREADABLE, Unseen
from bnlab_callbacks.statistics.activations import (
    ACTIVATIONS,
    ActivationSums,
    activation_sums,
    is_small,
    unit_maximum,
)
from bnlab_callbacks.statistics.chunks import Scratch
from bnlab_callbacks.statistics.effective_rank import effective_rank

# elements of small outputs that wait at most for others of their shape: 8 MiB of float32
_MOST_WAITING = 1 << 21


class _Hook(ModuleHook):
    """A forward hook on an activation module.

    Attributes:
        wanted: whether some reader wants the layer.
    """

    only_in_training = False  # it says itself what runs in evaluation mode
    into: ActivationRecorder

    def __init__(self, layer: str, module: nn.Module, unit_dim: int | None, into: ActivationRecorder) -> None:
        super().__init__(layer, into)
        self.kind = kind_of_module(module)
        self.unit_dim = unit_dim

    def record(self, module: nn.Module, *given: Any) -> None:
        """Note one call with the recorder."""
        if not module.training:
            self.into.not_seen(self.layer, EVALUATION)
        else:
            self.into.note(self.layer, given[-1], self.kind, True, unit_dim=self.unit_dim)

    def tensors(self, module: nn.Module, *given: Any) -> list[Tensor] | None:
        """The output, where it is trained."""
        output = given[-1]
        if module.training and torch.is_grad_enabled() and isinstance(output, Tensor) and output.is_floating_point():
            return [output.detach()]
        return None

    def record_tensors(self, tensors: list[Tensor]) -> None:
        """Note one call with the recorder."""
        if is_dense_float(tensors[0]):
            self.into.take_call(self.layer, tensors[0], self.kind, True, self.unit_dim)


class ActivationRecorder(ForwardRecorder):
    """Records the outputs of activations in modules in training mode: of `nn.ReLU` and its like, and of functions.

    What is no module is seen where a function mode is (`hear`): `F.relu(x)` and `x.relu()` in a module's forward pass.
    A reader with the attribute `exact_dead` is given the calls of every batch, recorded or not, by its `take_units`;
    for one with `effective_rank` that is recorded, too.

    Attributes:
        layers: names of activation modules.
        gates: names of calls whose outputs weigh something: gates, soft caps, attention scores, position biases.
        unseen: what ran and was not recorded.
        steps: how many were recorded.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.scratch = Scratch()
        self.calls: list[Call] = []
        self.layers: list[str] = []
        self.gates: set[str] = set()
        self.unseen = Unseen()
        self.steps = 0
        self._waiting = 0  # elements of small outputs, which are kept as they are until the batch is over
        self._every_step = False
        self._effective_rank = False
        self._wanted: dict[str, bool] = {}
        self._messages = Messages(ranks)
        self._mode: FunctionMode | None = None
        self._functions: FunctionalActivations | None = None
        super().__init__(model, ranks)
        self._names = CallNames([*self.layers, *find_composites(model)])

    def watch(self, model: nn.Module) -> None:
        """Hook every activation module."""
        for layer, module, unit_dim in find_activations(model):
            self.layers.append(layer)
            self.hooks.add(partial(module.register_forward_hook, _Hook(layer, module, unit_dim, self)))

    def hear(self, mode: FunctionMode, model: nn.Module) -> None:
        """See functions as well, through the run's function mode."""
        self._mode, self._functions = mode, FunctionalActivations(model, self)
        mode.join(self._functions, model)

    def join(self, reader: Any) -> None:
        """Record for one more reader."""
        super().join(reader)
        self._every_step |= reader.exact_dead
        self._effective_rank |= getattr(reader, "effective_rank", False)
        self._choose()

    def leave(self, reader: Reader) -> None:
        """Record no more for a reader."""
        super().leave(reader)
        self._every_step = any(other.exact_dead for other in self.readers)
        self._effective_rank = any(getattr(other, "effective_rank", False) for other in self.readers)
        self._choose()
        if not self.readers:
            self.scratch.clear()
            if self._mode is not None and self._functions is not None:
                self._mode.quit(self._functions)
                self._functions.forget()

    def _choose(self) -> None:
        """Ask anew which layers somebody wants."""
        self._wanted = {}

    @property
    def listens(self) -> bool:
        """In all steps where dead units are to be exact."""
        return self.recording or self._every_step

    # a training loop

    def begin_batch(self, moment: Moment, optimizer_steps: int) -> None:
        """A batch begins."""
        super().begin_batch(moment, optimizer_steps)
        if self.listens:
            self._listen()
        elif self._mode is not None:
            self._mode.rest()

    def before_backward(self) -> None:
        """A backward pass begins."""
        super().before_backward()
        if self.listens and self._mode is not None and self._functions is not None:
            self._mode.leave(self._functions)

    def after_backward(self) -> None:
        """It is over."""
        super().after_backward()
        if self.gate.open:
            self._listen(again=True)

    def end_batch(self, moment: Moment, optimizer_steps: int) -> None:
        """A batch is over."""
        if self.listens and self._mode is not None and self._functions is not None:
            self._mode.leave(self._functions)
            self._functions.forget()
            self.failure = self.failure or self._functions.failure
        super().end_batch(moment, optimizer_steps)

    def _listen(self, again: bool = False) -> None:
        if self._mode is not None and self._functions is not None:
            if not again:
                self._functions.forget()
            self._mode.enter(self._functions, again, waits=True)

    # calls

    def note(
        self, layer: str, output: Any, kind: Kind, is_module: bool, given: Any = None, unit_dim: int | None = None
    ) -> None:
        """An activation was computed: leave its sums; only its units' maxima in a step that is not recorded.

        Args:
            layer: its name.
            output: what it gave.
            kind: what it is.
            is_module: whether the name is a module's own.
            given: its input, of which nothing is recorded.
            unit_dim: dimension of its units by definition, for a module; what is known of its way is surer.
        """
        tensor = self._readable(layer, output)
        if tensor is not None:
            self.take_call(layer, tensor, kind, is_module, unit_dim)

    def take_call(self, layer: str, tensor: Tensor, kind: Kind, is_module: bool, unit_dim: int | None) -> None:
        """Leave the sums of an activation's output."""
        origin = mark = None
        if self._is_told():
            assert self._functions is not None
            origin, mark = self._functions.units.origin(tensor), Mark()
        if is_module:
            unit_dim = units_of(tensor.ndim, unit_dim)
        if origin is not None:
            unit_dim = max(tensor.ndim - origin.right, 0)
        wanted = self._is_wanted(layer)
        measured = self._measure(tensor, kind, unit_dim) if wanted else (None, None)
        rank = self._rank(tensor, unit_dim) if wanted else None
        samples = tensor.shape[0] if tensor.ndim else 1
        behind = None if origin is None else origin.layer
        self.calls.append(Call(layer, samples, tensor.numel(), *measured, is_module, behind, mark, rank))
        if mark is not None and self._functions is not None:
            self._functions.units.mark(tensor, mark)

    def _measure(
        self, output: Tensor, kind: Kind, unit_dim: int | None
    ) -> tuple[ActivationSums | Outputs | None, Tensor | None]:
        """The sums of an output, and its units' maxima."""
        output = output.detach().reshape(1) if output.ndim == 0 else output.detach()
        if self.recording:
            if is_small(output):
                self._make_room(output.numel())
                return Outputs(output.clone(), kind.bounds, unit_dim), None
            sums = activation_sums(output, kind.bounds, unit_dim, self.scratch)
            return sums, sums.unit_max
        return None, unit_maximum(output, unit_dim) if kind.bounds.rectifier and unit_dim is not None else None

    def _rank(self, output: Tensor, unit_dim: int | None) -> Tensor | None:
        """The effective rank, where a reader wants it."""
        if not self.recording or not self._effective_rank or unit_dim is None:
            return None
        return effective_rank(output.detach().reshape(1) if output.ndim == 0 else output.detach(), unit_dim)

    def _readable(self, layer: str, output: Any) -> Tensor | None:
        """The tensor of an output, where its statistics are defined and it is part of what is trained."""
        if self._mode is not None and self._mode.within_backward:
            return None
        tensor = tensor_of(output)
        if tensor is not None and is_transformed(tensor):
            self.not_seen(layer, TRANSFORMED)
        elif tensor is None or not is_dense_float(tensor):
            if tensor is None or (tensor.is_floating_point() and (tensor.is_nested or tensor.layout != torch.strided)):
                self.not_seen(layer, UNREADABLE)
        elif not torch.is_grad_enabled() and not is_checkpointed():
            self.not_seen(layer, NO_GRADIENT)
        else:
            return tensor
        return None

    def _is_told(self) -> bool:
        """Whether functions are seen that run now."""
        return self._mode is not None and self._functions is not None and self._mode.tells(self._functions)

    def _is_wanted(self, layer: str) -> bool:
        wanted = self._wanted.get(layer)
        if wanted is None:
            wanted = self._wanted[layer] = any(reader.wants(layer) for reader in self.readers)
        return wanted

    def not_seen(self, layer: str, reason: str) -> None:
        """An activation was computed that is not recorded."""
        if self._functions is None or not self._functions.in_metric:
            self.unseen.add(layer, reason)

    def count(self) -> int:
        """The batch's calls so far."""
        return len(self.calls)

    def drop(self, start: int) -> None:
        """Forget the batch's calls from this one on."""
        del self.calls[start:]

    def _make_room(self, numel: int) -> None:
        """Compute the sums of what waits, if it gets too much."""
        self._waiting += numel
        if self._waiting > _MOST_WAITING:
            self._reduce()
            self._waiting = numel

    def _reduce(self) -> None:
        try:
            self.calls, self._waiting = reduce_outputs(self.calls, self.scratch), 0
        except Exception as error:  # noqa: BLE001 - other ranks wait: they hear of it with the step's values
            self.failure = self.failure or f"{type(error).__name__}: {error}"
            self.calls, self._waiting = [], 0

    def pop_calls(self) -> list[tuple[str, Call]]:
        """The batch's calls by name, also for the readers that count every batch."""
        self._reduce()
        names = self._names.name([CallKey(call.layer, call.is_module, call.behind) for call in self.calls])
        calls = [(name, call._replace(mark=None)) for name, call in zip(names, self.calls, strict=True)]
        self.gates.update(
            name for name, call in zip(names, self.calls, strict=True) if call.mark is not None and call.mark.is_gate
        )
        for call in self.calls:
            self.unseen.saw(call.layer)
        self.calls = []
        for reader in self.readers:
            if reader.exact_dead:
                reader.take_units(calls)
        return calls if self.recording else []

    def leave_step(self, moment: Moment, calls: list[tuple[str, Call]]) -> ActivationStep | None:
        """The step's calls and, with several ranks, their sums on all ranks, through one collective."""
        self.steps += 1
        if self._mode is not None:
            self.unseen.note_compiled(self._mode.unseen)
        names = [name for name, _ in calls]
        measured = [(name, call) for name, call in calls if call.sums is not None]
        if self.ranks.size == 1:
            return ActivationStep(moment.step, names, measured, None) if measured else None
        measured = with_sums(measured)
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


def find_composites(model: nn.Module) -> Iterator[str]:
    """Names of the modules that are activations by their class's name, in order of definition."""
    for name, module in model.named_modules():
        if is_composite(module):
            yield clean_name(name)


def units_of(ndim: int, known: int | None) -> int:
    """Dimension of the units of an output with `ndim` dimensions: as known, else the last of (N, T, F), else 1."""
    if known is None:
        known = -1 if ndim == 3 else 1
    return min(known, ndim - 1) if ndim > 1 else 0
