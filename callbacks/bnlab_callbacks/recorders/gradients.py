"""The recorder of gradients: their sums in recorded optimizer steps, and the updates that came of them."""

from collections.abc import Callable, Collection, Iterator, Sequence
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from bnlab_callbacks.core.hooks import ForwardOrder
from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.core.weights import Weight, real
from bnlab_callbacks.recorders.forward_recorder import Reader
from bnlab_callbacks.recorders.gradient_steps import GradientStep, Part
from bnlab_callbacks.recorders.watched_weights import WatchedWeights
from bnlab_callbacks.statistics.chunks import Scratch, flat
from bnlab_callbacks.statistics.gradients import changed_share, gradient_sums, stored_values, update_norms
from bnlab_callbacks.statistics.packed_layers import SMALL, PackedLayers, can_pack

# sets of small layers whose buffers are kept
_LAYOUTS = 8
_HALF = (torch.float16, torch.bfloat16)


class GradientReader(Reader, Protocol):
    """A reader of gradients.

    Attributes:
        update_ratio: whether it wants to know how far steps moved the weights.
        changed_before: and, of 16-bit weights, how many a step changes, before this step of the run.
        vectors: whether it wants biases, scales and other vectors as well as layers' weights.
        numbered: layers → `<NN>_<layer>`, as far as they were known before, in the run that goes on; else empty.
    """

    update_ratio: bool
    changed_before: int
    vectors: bool
    numbered: dict[str, str]


class GradientRecorder:
    """Records the gradients of those optimizer steps that are due for one of its readers.

    With several optimizers each layer is recorded at the first step of its optimizer. Layers that are frozen, lazy or
    not yet there are recorded from the step on in which they are trained (`WatchedWeights`). The first reader, the
    `leader`, tells it what the training loop does.

    Args:
        model: the model.
        ranks: of the run; after a backward pass all have the same gradients.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.readers: list[Any] = []
        self._scratch = Scratch()
        self._watched = WatchedWeights(model)
        self._small: set[str] = set()
        self._taken: list[tuple[Part, list[Any]]] = []  # and for which readers
        self._packed: dict[tuple[str, ...], list[tuple[tuple[Weight, ...], PackedLayers]]] = {}
        self._before: dict[str, Tensor] = {}
        self._seen: dict[str, list[Part]] = {}  # what `after_backward` saw, by stream
        self._open: str | None = None  # the stream whose step is under way, if that may evaluate the loss itself
        self._began: dict[int, Tensor] = {}  # weights as they were before it, by the parameter's identity
        self._counts_changes = False
        self._spent = 0.0

    @property
    def layers(self) -> list[str]:
        """Names of the layers that are trained, in order of definition."""
        return self._watched.layers

    @property
    def order(self) -> ForwardOrder:
        """The order in which modules ran in the first batch."""
        return self._watched.order

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
            self.order.remove()
            self._scratch.clear()
            for kept in (self._packed, self._before, self._seen, self._began):
                kept.clear()

    # a training loop

    def begin_batch(self) -> None:
        """A batch begins; until the order of execution is known, it is watched."""
        self._watched.order.gate.open = not self._watched.ordered

    def begin_step(self, optimizer: Optimizer, stream: str, moment: Moment) -> None:
        """A step begins that may move the weights before its gradient is known: keep them as they are, if it is due.

        `before_optimizer_step` follows within it, once or more, or `after_backward` and then the other, and `end_step`.
        """
        self._open = stream
        self._seen.pop(stream, None)
        due = [reader for reader in self.readers if reader.due(moment, stream)]
        if not due and not self._taken:
            return
        start = perf_counter()
        held = {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
        self._measure_updates(held.keys())
        if any(reader.update_ratio for reader in due):
            self._began = {key: parameter.detach().clone() for key, parameter in held.items() if _has_values(parameter)}
            normed = [weight for weight in self._watched.weights if not weight.is_plain]
            self._began |= {id(weight.parameter): weight.values for weight in normed if id(weight.parameter) in held}
        self._spent += perf_counter() - start

    def after_backward(
        self, optimizer: Optimizer, stream: str, moment: Moment, loss_scale: Callable[[], float]
    ) -> None:
        """A backward pass is over, and what comes of it may be clipped before anybody tells of the step.

        What counts is the last one before a step, and the first one within.
        """
        if self._open == stream and stream in self._seen:
            return
        due = [reader for reader in self.readers if reader.due(moment, stream)]
        if due:
            start = perf_counter()
            self._seen[stream] = self._gradients_now(self._owned_by(optimizer, stream), due, loss_scale())
            self._spent += perf_counter() - start

    def before_optimizer_step(
        self,
        optimizer: Optimizer,
        stream: str,
        moment: Moment,
        loss_scale: Callable[[], float],
        raw: bool = False,
    ) -> None:
        """An optimizer step is about to be made: take the gradients of its layers, as they are now.

        Args:
            optimizer: the optimizer.
            stream: its name among the run's optimizers.
            moment: the step's.
            loss_scale: gives what the gradients are still multiplied by.
            raw: whether the training loop does not know of the step: then what `after_backward` saw counts.
        """
        if not self._watched.ordered:  # from then on modules need not be watched
            self._number_layers()
        due = [reader for reader in self.readers if reader.due(moment, stream)]
        if not due and not self._taken:
            return
        start = perf_counter()
        owned = self._owned_by(optimizer, stream)
        if self._open != stream:
            self._measure_updates(owned.keys())  # of this optimizer's step before, if it makes several within one batch
        if due:
            parts = self._seen.pop(stream, None) if raw else None
            if parts is None:
                parts = self._gradients_now(owned, due, loss_scale())
            self._take_step(owned, due, moment, stream, parts)
        self._spent += perf_counter() - start

    def end_step(self, stream: str) -> None:
        """A step is over: what it did to the weights is known."""
        self._open, self._began = None, {}
        if self._taken:
            start = perf_counter()
            self._measure_updates(self._watched.known_of(stream))
            self._spent += perf_counter() - start

    def end_batch(self, moment: Moment) -> None:
        """A batch is over: the readers get what its steps left."""
        self._seen.clear()
        if not self._taken:
            return
        start = perf_counter()
        self._measure_updates(None)
        taken, self._taken = self._taken, []
        seconds, self._spent = self._spent + perf_counter() - start, 0.0
        due = [reader for reader in self.readers if any(reader in readers for _, readers in taken)]
        for reader in due:
            parts = [part for part, readers in taken if reader in readers]
            watched = self._watched
            step = GradientStep(parts, watched.numbered, watched.trained, watched.vectors)
            reader.take(moment, step, seconds / len(due))

    # its work

    def _gradients_now(self, owned: dict[int, Weight], due: list[Any], scale: float) -> list[Part]:
        """The sums of those gradients that some reader wants and that are not taken yet in this batch."""
        taken = {weight.layer for part, _ in self._taken for weight in part.weights}
        weights = [
            weight
            for weight in owned.values()
            if weight.layer not in taken and weight.has_gradient and any(_wants(reader, weight) for reader in due)
        ]
        with torch.no_grad():
            return list(self._take(weights, scale))

    def _take_step(
        self, owned: dict[int, Weight], due: list[Any], moment: Moment, stream: str, parts: list[Part]
    ) -> None:
        """Keep the gradients of a step, and the weights as they are before it."""
        if not parts and owned and not any(weight.has_gradient for weight in owned.values()):
            return  # a batch that was skipped: it makes no step
        self._counts_changes = any(moment.step < reader.changed_before for reader in due)
        for reader in due:
            reader.mark(moment, stream)
        self._watched.note_trained([weight for part in parts for weight in part.weights])
        if any(reader.update_ratio for reader in due):
            with torch.no_grad():
                for part in parts:
                    self._remember(part)
        self._taken += [(part, due) for part in parts]

    def _number_layers(self) -> None:
        known = {layer: name for reader in self.readers for layer, name in reader.numbered.items()}
        self._watched.number(known, vectors=any(reader.vectors for reader in self.readers))

    def _owned_by(self, optimizer: Optimizer, stream: str) -> dict[int, Weight]:
        """The watched weights of an optimizer; of those that are new, no buffers are kept."""
        if not self._watched.ordered:
            self._number_layers()
        owned = self._watched.owned_by(optimizer, stream)
        if self._watched.new:
            for layer in self._watched.new:
                self._before.pop(layer, None)
            self._watched.new.clear()
            self._packed.clear()
            self._small = {weight.layer for weight in self._watched.weights if can_pack(weight.parameter)}
        return owned

    def _take(self, weights: list[Weight], scale: float) -> Iterator[Part]:
        """Sums of these layers' gradients."""
        alone: list[Weight] = []
        small: list[Weight] = []
        for weight in weights:
            dense = weight.gradient.layout == torch.strided
            (small if dense and weight.layer in self._small else alone).append(weight)
        for group, packed in self._pack(small):
            sums = packed.sums([weight.gradient for weight in group])
            if sums is None:
                alone += group
            else:
                yield Part(group, scale, packed, sums)
        for weight in alone:
            values = stored_values(weight.gradient)
            yield Part((weight,), scale, None, (*gradient_sums(values, self._scratch), values.numel()))

    def _pack(self, weights: list[Weight]) -> list[tuple[tuple[Weight, ...], PackedLayers]]:
        """Small layers in groups of cache size, with their buffers."""
        layers = tuple(weight.layer for weight in weights)
        if layers not in self._packed:
            if len(self._packed) >= _LAYOUTS:  # layers that come and go
                self._packed.clear()
            groups = _cache_sized(weights)
            self._packed[layers] = [(group, PackedLayers([w.parameter.shape for w in group])) for group in groups]
        return self._packed[layers]

    def _remember(self, part: Part) -> None:
        """Keep the weights as they are before the step."""
        values = [self._began.get(id(weight.parameter), weight.values) for weight in part.weights]
        if part.packed is not None:
            part.packed.remember(values)
            return
        layer, now = part.weights[0].layer, flat(real(values[0]))
        if layer in self._before:
            self._before[layer].copy_(now)
        else:
            self._before[layer] = now.clone()

    def _measure_updates(self, owned: Collection[int] | None) -> None:
        """Measure what the recorded steps did to the weights; `owned` are an optimizer's parameters, None for all."""
        with torch.no_grad():
            for index, (part, readers) in enumerate(self._taken):
                wanted = not part.moved and any(reader.update_ratio for reader in readers)
                if wanted and (owned is None or id(part.weights[0].parameter) in owned):
                    changed = self._changed(part) if self._counts_changes else ()
                    self._taken[index] = part._replace(moved=self._moved(part), changed=changed), readers

    def _moved(self, part: Part) -> tuple[Any, ...]:
        if part.packed:
            return part.packed.moved([weight.values for weight in part.weights])
        (weight,) = part.weights
        return update_norms(self._before[weight.layer], flat(real(weight.values)), self._scratch)

    def _changed(self, part: Part) -> tuple[Any, ...]:
        """Shares of weights that the step changed, as far as its gradients are still there."""
        if not all(weight.is_plain for weight in part.weights):
            return ()
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


def _wants(reader: GradientReader, weight: Weight) -> bool:
    return reader.wants(weight.layer) and (reader.vectors or not weight.vector)


def _has_values(parameter: Tensor) -> bool:
    return parameter.requires_grad and not isinstance(parameter, UninitializedParameter)


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
