"""The recorder of gradients: their sums in recorded optimizer steps, and the updates that came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from bnlab_callbacks.core.device import Change
from bnlab_callbacks.core.hooks import ForwardOrder
from bnlab_callbacks.core.naming import number
from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.core.weights import Weight, find_weights, real
from bnlab_callbacks.recorders.forward_recorder import Reader
from bnlab_callbacks.statistics.chunks import Scratch, flat
from bnlab_callbacks.statistics.gradients import changed_share, gradient_sums, stored_values, update_norms
from bnlab_callbacks.statistics.packed_layers import SMALL, PackedLayers, can_pack

# sets of small layers whose buffers are kept
_LAYOUTS = 8
_HALF = (torch.float16, torch.bfloat16)


class Part(NamedTuple):
    """What one optimizer step left of some small layers packed together, or of one other layer."""

    weights: tuple[Weight, ...]
    scale: float
    packed: PackedLayers | None
    sums: tuple[Any, ...]  # `PackedLayers.sums`, or the six that `gradient_statistics` takes
    moved: tuple[Any, ...] = ()  # `PackedLayers.moved`, or `update_norms`; nothing until the step was made
    changed: tuple[Any, ...] = ()  # `changed_share` of each layer; nothing where it was not wanted or is not known

    @property
    def key(self) -> tuple[int, ...]:
        """The same for parts of different steps that can be computed together."""
        return (id(self.packed), len(self.moved), len(self.changed), *map(id, self.weights))

    def change_tensors(self, change: Change) -> Part:
        """The same with other tensors, unless they are rows of a buffer on the host."""
        if self.packed is not None:
            return self
        sums, moved, changed = (
            tuple(change(value) if isinstance(value, Tensor) else value for value in values)
            for values in (self.sums, self.moved, self.changed)
        )
        return self._replace(sums=sums, moved=moved, changed=changed)


class GradientStep(NamedTuple):
    """A recorded step: its parts, and all layers' `<NN>_<layer>`, in order of execution."""

    parts: list[Part]
    numbered: dict[str, str]

    def change_tensors(self, change: Change) -> GradientStep:
        """The same with other tensors; small layers that were packed are on the host."""
        return self._replace(parts=[part.change_tensors(change) for part in self.parts])


class GradientReader(Reader, Protocol):
    """A reader of gradients.

    Attributes:
        update_ratio: whether it wants to know how far steps moved the weights.
        changed_before: and, of 16-bit weights, how many a step changes, before this step of the run.
    """

    update_ratio: bool
    changed_before: int


class GradientRecorder:
    """Records the gradients of those optimizer steps that are due for one of its readers.

    With several optimizers each layer is recorded at the first step of its optimizer. Layers that are frozen are
    recorded from the step on that has set them free. The first reader, the `leader`, tells it what the training loop
    does.

    Attributes:
        order: the order in which modules ran in the first batch.

    Args:
        model: the model.
        ranks: of the run; after a backward pass all have the same gradients.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.readers: list[Any] = []
        self._scratch = Scratch()
        self._model: nn.Module | None = model  # until the order is known
        self._weights = list(find_weights(model, frozen=True))
        self._trained = {weight.layer for weight in find_weights(model)}
        self.order = ForwardOrder(
            (name, module)
            for name, module in model.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        )
        self._places: dict[str, int] = {}  # layer → its place in order of execution
        self._numbered: dict[str, str] = {}
        self._small: set[str] = set()
        self._owned: dict[str, tuple[list[int], dict[int, Weight]]] = {}
        self._taken: list[tuple[Part, list[Any]]] = []  # and for which readers
        self._packed: dict[tuple[str, ...], list[tuple[tuple[Weight, ...], PackedLayers]]] = {}
        self._before: dict[str, Tensor] = {}
        self._counts_changes = False
        self._spent = 0.0

    @property
    def layers(self) -> list[str]:
        """Names of the layers that are trained, in order of definition."""
        return [weight.layer for weight in self._weights if weight.layer in self._trained]

    # readers

    @property
    def leader(self) -> Any | None:
        """The reader that is to call the methods below."""
        return self.readers[0] if self.readers else None

    def join(self, reader: GradientReader) -> None:
        """Record for one more reader."""
        self.readers.append(reader)

    def leave(self, reader: GradientReader) -> None:
        """Record no more for a reader; the last one's leaving takes all hooks off and frees the buffers."""
        if reader in self.readers:
            self.readers.remove(reader)
        if not self.readers:
            self._model = None
            self.order.remove()
            self._scratch.clear()
            self._packed.clear()
            self._before.clear()

    # a training loop

    def begin_batch(self) -> None:
        """A batch begins; until the order of execution is known, it is watched."""
        self.order.gate.open = self._model is not None

    def before_optimizer_step(
        self, optimizer: Optimizer, stream: str, moment: Moment, loss_scale: Callable[[], float]
    ) -> None:
        """An optimizer step is about to be made: take the gradients of its layers, as they are now.

        Args:
            optimizer: the optimizer.
            stream: its name among the run's optimizers.
            moment: the step's.
            loss_scale: gives what the gradients are still multiplied by.
        """
        if self._model is not None:
            self._number_layers(self._model)
            self._model = None
        due = [reader for reader in self.readers if reader.due(moment, stream)]
        if not due and not self._taken:
            return
        start = perf_counter()
        owned = self._owned_by(optimizer, stream)
        if not isinstance(optimizer, LBFGS):  # which evaluates its closure several times a step
            self._measure_updates(owned)  # of this optimizer's step before, if it makes several within one batch
        if due:
            self._counts_changes = any(moment.step < reader.changed_before for reader in due)
            for reader in due:
                reader.mark(moment, stream)
            taken = {weight.layer for part, _ in self._taken for weight in part.weights}
            weights = [
                weight
                for weight in owned.values()
                if weight.layer not in taken
                and weight.has_gradient
                and any(reader.wants(weight.layer) for reader in due)
            ]
            self._number_late([weight.layer for weight in weights])
            with torch.no_grad():
                parts = list(self._take(weights, loss_scale(), any(reader.update_ratio for reader in due)))
            self._taken += [(part, due) for part in parts]
        self._spent += perf_counter() - start

    def end_batch(self, moment: Moment) -> None:
        """A batch is over: the readers get what its steps left."""
        if not self._taken:
            return
        start = perf_counter()
        self._measure_updates(None)
        taken, self._taken = self._taken, []
        seconds, self._spent = self._spent + perf_counter() - start, 0.0
        due = [reader for reader in self.readers if any(reader in readers for _, readers in taken)]
        for reader in due:
            parts = [part for part, readers in taken if reader in readers]
            reader.take(moment, GradientStep(parts, self._numbered), seconds / len(due))

    # its work

    def _number_layers(self, model: nn.Module) -> None:
        """Fix the layers' numbers, once: a tag must not change its name during a run."""
        known = {weight.layer for weight in self._weights}
        self._weights = list(find_weights(model, frozen=True))  # lazy ones have their shapes by now
        self._trained |= {weight.layer for weight in find_weights(model)} - known
        layers = self.order.sort([(weight.layer, weight.module) for weight in self._weights])
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._numbered = number(layer for layer in layers if layer in self._trained)
        self._small = {weight.layer for weight in self._weights if can_pack(weight.parameter)}
        self.order.rest()

    def _number_late(self, layers: Sequence[str]) -> None:
        """Layers that are trained from now on get the next numbers; their place is that of their execution."""
        late = [layer for layer in layers if layer not in self._numbered]
        if late:
            named = self._numbered | {
                layer: f"{at:02d}_{layer}" for at, layer in enumerate(late, start=len(self._numbered))
            }
            self._numbered = {layer: named[layer] for layer in sorted(named, key=self._places.__getitem__)}

    def _owned_by(self, optimizer: Optimizer, stream: str) -> dict[int, Weight]:
        """The watched weights among an optimizer's parameters, by the parameter's identity."""
        identities = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        known, owned = self._owned.get(stream, ([], {}))
        if identities != known:
            wanted = set(identities)
            owned = {id(w.parameter): w for w in self._weights if id(w.parameter) in wanted}
            self._owned[stream] = identities, owned
        return owned

    def _take(self, weights: list[Weight], scale: float, updates: bool) -> Iterator[Part]:
        """Sums of these layers' gradients; the layers are kept as they are, if `updates`."""
        alone: list[Weight] = []
        small: list[Weight] = []
        for weight in weights:
            dense = weight.gradient.layout == torch.strided
            (small if dense and weight.layer in self._small else alone).append(weight)
        for group, packed in self._pack(small):
            sums = packed.sums([weight.gradient for weight in group])
            if sums is None:
                alone += group
                continue
            if updates:
                packed.remember([weight.parameter for weight in group])
            yield Part(group, scale, packed, sums)
        for weight in alone:
            values = stored_values(weight.gradient)
            alone_sums = gradient_sums(values, self._scratch)
            if updates:
                self._remember(weight)
            yield Part((weight,), scale, None, (*alone_sums, values.numel()))

    def _pack(self, weights: list[Weight]) -> list[tuple[tuple[Weight, ...], PackedLayers]]:
        """Small layers in groups of cache size, with their buffers."""
        layers = tuple(weight.layer for weight in weights)
        if layers not in self._packed:
            if len(self._packed) >= _LAYOUTS:  # layers that come and go
                self._packed.clear()
            groups = _cache_sized(weights)
            self._packed[layers] = [(group, PackedLayers([w.parameter.shape for w in group])) for group in groups]
        return self._packed[layers]

    def _remember(self, weight: Weight) -> None:
        now = flat(real(weight.parameter.detach()))
        if weight.layer in self._before:
            self._before[weight.layer].copy_(now)
        else:
            self._before[weight.layer] = now.clone()

    def _measure_updates(self, owned: dict[int, Weight] | None) -> None:
        """Measure what the recorded steps did to the weights; `owned` are an optimizer's parameters, None for all."""
        with torch.no_grad():
            for index, (part, readers) in enumerate(self._taken):
                wanted = not part.moved and any(reader.update_ratio for reader in readers)
                if wanted and (owned is None or id(part.weights[0].parameter) in owned):
                    changed = self._changed(part) if self._counts_changes else ()
                    self._taken[index] = part._replace(moved=self._moved(part), changed=changed), readers

    def _moved(self, part: Part) -> tuple[Any, ...]:
        if part.packed:
            return part.packed.moved([weight.parameter for weight in part.weights])
        (weight,) = part.weights
        return update_norms(self._before[weight.layer], flat(real(weight.parameter.detach())), self._scratch)

    def _changed(self, part: Part) -> tuple[Any, ...]:
        """Shares of weights that the step changed, as far as its gradients are still there."""
        weights = [weight.parameter for weight in part.weights]
        grads = [weight.parameter.grad for weight in part.weights]
        if not all(weight.dtype in _HALF and _alike(weight, grad) for weight, grad in zip(weights, grads, strict=True)):
            return ()
        before = part.packed.remembered if part.packed else [self._before[weight.layer] for weight in part.weights]
        return tuple(
            changed_share(flat(old), flat(weight.detach()), flat(grad))
            for old, weight, grad in zip(before, weights, grads, strict=True)
            if grad is not None
        )


def _alike(weight: Tensor, grad: Tensor | None) -> bool:
    return grad is not None and grad.layout == torch.strided and grad.stride() == weight.stride()


def _cache_sized(weights: Sequence[Weight]) -> Iterator[tuple[Weight, ...]]:
    """Neighbouring small weights in groups of at most `SMALL` elements."""
    group: list[Weight] = []
    elements = 0
    for weight in weights:
        elements += weight.parameter.numel()
        if elements > SMALL and group:
            yield tuple(group)
            group, elements = [], weight.parameter.numel()
        group.append(weight)
    if group:
        yield tuple(group)
