"""The recorder of attention: its logits, their entropy and the share of the first key in recorded training steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnlab_callbacks.core.device import Change
from bnlab_callbacks.core.function_mode import FunctionMode
from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.core.ranks import Messages, Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.recorders.attention_calls import is_attention, is_softmax, logits_of_call
from bnlab_callbacks.recorders.call_names import CallKey, CallNames
from bnlab_callbacks.recorders.forward_recorder import ForwardRecorder, Reader
from bnlab_callbacks.recorders.functional_activations import is_checkpointed
from bnlab_callbacks.recorders.unseen import EVALUATION, NO_GRADIENT, UNREADABLE, Unseen
from bnlab_callbacks.statistics.attention import attention_sums, draw_queries, join_sums

# what a module or its class is called in which softmax over the last dimension is attention
_NAMED_ATTENTION = re.compile(r"atten|attn|multi_?head", re.IGNORECASE)


class _Call(NamedTuple):
    layer: str
    sums: Tensor | None  # (9, H), see `attention_sums`; None for a layer that no reader wants


class AttentionStep(NamedTuple):
    """A recorded step: all calls' names in order of execution, and the sums of those that were measured."""

    names: list[str]
    measured: list[tuple[str, str, int]]  # name, layer and number of heads
    sums: Tensor  # (9 · heads of all,), or with several ranks a message of each: (ranks, 1 + length)

    def change_tensors(self, change: Change) -> AttentionStep:
        """The same with other tensors."""
        return self._replace(sums=change(self.sums))


class AttentionRecorder(ForwardRecorder):
    """Records attention in modules in training mode, as a subscriber of a function mode.

    Attention is each call of `scaled_dot_product_attention` and `nn.MultiheadAttention`, and softmax over the last
    dimension in a module that is called attention, by its class or by its own name. It has the name of the module in
    whose forward pass it runs.

    Attributes:
        unseen: what ran and was not recorded.
        steps: how many were recorded.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.unseen = Unseen()
        self.steps = 0
        self._calls: list[_Call] = []
        self._running: list[nn.Module] = []
        self._names: dict[int, tuple[str, nn.Module]] = {}
        self._batch = (0, 0)  # its step, and how many of the step came before it
        self._call_names = CallNames()
        self._layers: dict[str, str] = {}  # of calls
        self._messages = Messages(ranks)
        self._mode: FunctionMode | None = None
        super().__init__(model, ranks)

    def watch(self, model: nn.Module) -> None:
        """It needs no hooks of its own."""
        self._model = model

    def hear(self, mode: FunctionMode, model: nn.Module) -> None:
        """See the functions that the model calls, and which of its modules runs, through the run's function mode."""
        self._mode = mode
        mode.join(self, model)

    def leave(self, reader: Reader) -> None:
        """Record no more for a reader."""
        super().leave(reader)
        if not self.readers and self._mode is not None:
            self._mode.quit(self)

    # a training loop

    def begin_batch(self, moment: Moment, optimizer_steps: int) -> None:
        """A batch begins."""
        super().begin_batch(moment, optimizer_steps)
        if self.recording:
            step, before = self._batch
            self._batch = moment.step, before + 1 if step == moment.step and self._pending else 0
            self._running.clear()
            self._listen()
        elif self._mode is not None:
            self._mode.rest()

    def before_backward(self) -> None:
        """A backward pass begins."""
        super().before_backward()
        self._rest()

    def after_backward(self) -> None:
        """It is over."""
        super().after_backward()
        if self.recording:
            self._listen(again=True)

    def end_batch(self, moment: Moment, optimizer_steps: int) -> None:
        """A batch is over."""
        self._rest()
        self._running.clear()
        super().end_batch(moment, optimizer_steps)

    def _listen(self, again: bool = False) -> None:
        if self._mode is not None:
            self._mode.enter(self, again, waits=True)

    def _rest(self) -> None:
        if self._mode is not None:
            self._mode.leave(self)

    # what the function mode shows

    def entered(self, module: nn.Module) -> None:
        """A module's forward pass begins."""
        if not isinstance(module, nn.Softmax):  # what it computes is its parent's
            self._running.append(module)

    def left(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """It is over."""
        if module in self._running:
            while self._running.pop() is not module:
                pass

    def backward(self, losses: Sequence[Tensor]) -> None:
        """A backward pass begins; nothing of it is seen."""

    def called(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """A torch function has been called."""
        if not is_attention(function) or not self.gate.open or not self._running:
            return
        start = perf_counter()
        module = self._running[-1]
        layer = self._name_of(module)
        if layer is not None and (not is_softmax(function) or _is_named_attention(module, layer)):
            reason = _why_not(module)
            if reason is None:
                try:
                    with torch._C.DisableTorchFunction():  # what is computed here is nobody's to see
                        reason = self._record(layer, function, args, kwargs)
                except Exception as error:  # noqa: BLE001 - of a call unlike all that is known: others go on
                    reason = f"cause {type(error).__name__}: {error}"
            if reason is not None:
                self.unseen.add(layer, reason)
        self.spent += perf_counter() - start

    def _record(
        self, layer: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> str | None:
        """Leave a call's sums; gives the reason where that cannot be."""
        logits = logits_of_call(function, args, kwargs)
        if logits is None:
            return None if is_softmax(function) else UNREADABLE
        sums = None
        if any(reader.wants(layer) for reader in self.readers):
            # from the place in the run: a resumed one draws alike, and the run's random numbers are its own
            draw = Random(repr((self._batch, len(self._calls))))
            sequences, _, queries, _ = logits.shape
            sums = attention_sums(logits, draw_queries(sequences, queries, draw))
        self.unseen.saw(layer)
        self._calls.append(_Call(layer, sums))
        return None

    def _name_of(self, module: nn.Module) -> str | None:
        if id(module) not in self._names:  # the first one, or one that has joined late
            self._names = {
                id(each): (clean_name(name) or type(each).__name__, each) for name, each in self._model.named_modules()
            }
        return self._names[id(module)][0] if id(module) in self._names else None

    # what a step leaves

    def pop_calls(self) -> list[tuple[str, Tensor | None]]:
        """The batch's sums by call: named like the layer, then `<layer>.2`, …."""
        calls, self._calls = self._calls, []
        names = self._call_names.name([CallKey(call.layer) for call in calls])
        self._layers.update(zip(names, (call.layer for call in calls), strict=True))
        return list(zip(names, (call.sums for call in calls), strict=True))

    def leave_step(self, moment: Moment, calls: list[tuple[str, Tensor | None]]) -> AttentionStep | None:
        """The step's sums, joined over its batches and, with several ranks, exchanged."""
        self.steps += 1
        if self._mode is not None:
            self.unseen.note_compiled(self._mode.unseen)
        joined: dict[str, Tensor] = {}
        for name, sums in calls:
            if sums is not None:
                joined[name] = join_sums(joined[name], sums) if name in joined else sums
        measured = [(name, self._layers[name], sums.shape[1]) for name, sums in joined.items()]
        device = self.ranks.device
        vector = torch.cat([sums.flatten().to(device) for sums in joined.values()]) if joined else torch.zeros(0)
        if self.ranks.size > 1:
            vector = self._messages.exchange(vector, repr(measured), self.failure is not None)
        elif not measured:
            return None
        return AttentionStep([name for name, _ in calls], measured, vector)


def _is_named_attention(module: nn.Module, layer: str) -> bool:
    return bool(_NAMED_ATTENTION.search(type(module).__name__) or _NAMED_ATTENTION.search(layer.rpartition(".")[2]))


def _why_not(module: nn.Module) -> str | None:
    """Why what runs in a module does not count; None where it does."""
    if not module.training:
        return EVALUATION
    if not torch.is_grad_enabled() and not is_checkpointed():
        return NO_GRADIENT
    return None
