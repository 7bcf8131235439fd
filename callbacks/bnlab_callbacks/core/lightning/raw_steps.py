"""Optimizer steps that Lightning does not tell of, and where a step begins and ends that evaluates the loss itself."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

import torch
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bnlab_callbacks.core.lightning.names import LightningModule, Trainer
from bnlab_callbacks.core.lightning.trainer import loss_scale, moment_of, optimizer_name
from bnlab_callbacks.core.records import Moment


class HearsOfSteps(Protocol):
    """A callback that Lightning tells of optimizer steps."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """An optimizer step is about to be made."""

    def fail(self, reason: str) -> None:
        """Take note of an error."""


class RecordsSteps(Protocol):
    """A recorder of gradients; see `recorders.gradients.GradientRecorder`."""

    def begin_step(self, optimizer: Optimizer, stream: str, moment: Moment) -> None:
        """A step begins that may move the weights before its gradient is known."""

    def after_backward(
        self, optimizer: Optimizer, stream: str, moment: Moment, loss_scale: Callable[[], float]
    ) -> None:
        """A backward pass is over, and nobody will tell of the step that it may be for before it is made."""

    def end_step(self, stream: str) -> None:
        """A step is over."""


class RawSteps:
    """Tells callbacks of steps of `self.optimizers(use_pl_optimizer=False)`, as Lightning does of its own.

    Seen by hooks on all optimizers: SAM's `second_step` is a step of an optimizer inside. Of Lightning's own steps it
    is told, right before or within the step. One without a closure that begins untold, and one with a closure that
    ends untold, is one of which nobody knows.

    Attributes:
        made: steps of which nobody else knew.
        telling: whether callbacks are being told of such a step now.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.made = 0
        self.telling = False
        self._trainer = ref(trainer)
        self._listeners: list[HearsOfSteps] = []
        self._recorder: RecordsSteps | None = None
        self._handles: list[Any] = []
        self._told: set[int] = set()  # optimizers of whose present or next step is told
        self._heard: set[int] = set()  # those of which Lightning has ever told
        self._known: WeakKeyDictionary[Optimizer, Any] = WeakKeyDictionary()  # optimizer → see `_own`
        self._open: tuple[Optimizer, Optimizer] | None = None  # one whose step is under way, and the Trainer's
        self._inside = False  # whether a hook is at work

    def join(self, listener: HearsOfSteps, recorder: RecordsSteps | None = None) -> None:
        """Tell one more callback; the first one's joining puts the hooks on. Harmless when repeated."""
        self._recorder = recorder or self._recorder
        if listener in self._listeners:
            return
        self._listeners.append(listener)
        if not self._handles:
            self._handles = [
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
            ]

    def leave(self, listener: HearsOfSteps) -> bool:
        """Tell a callback no more; the last one's leaving takes the hooks off. Harmless when repeated.

        Gives False while torch goes through its hooks, and they must stay: then it is to be called once more.
        """
        if listener in self._listeners:
            self._listeners.remove(listener)
        if not self._listeners and self._inside:
            return False
        if not self._listeners:
            for handle in self._handles:
                handle.remove()
            self._handles, self._recorder, self._open = [], None, None
        return True

    def told(self, optimizer: Optimizer) -> bool:
        """A callback was told of a step that is about to be made; gives whether Lightning does not know of it."""
        self._told.add(id(optimizer))
        if not self.telling:
            self._heard.add(id(optimizer))
        return self.telling

    def after_backward(self) -> None:
        """Let the recorder see the gradients of steps of which Lightning will not tell, before they are clipped."""
        trainer = self._trainer()
        if self._recorder is None or trainer is None or trainer.lightning_module.automatic_optimization:
            return
        optimizers = [self._open[1]] if self._open is not None else [*trainer.optimizers, *self._others()]
        for optimizer in optimizers:
            if id(optimizer) not in self._heard:
                stream, scale = optimizer_name(trainer, optimizer), partial(loss_scale, trainer)
                self._recorder.after_backward(optimizer, stream, moment_of(trainer), scale)

    # hooks on optimizers

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.compiler.is_compiling() and self._listeners:
            self._guarded(partial(self._begin, optimizer, args, kwargs))

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.compiler.is_compiling() and self._open is not None and self._open[0] is optimizer:
            self._guarded(partial(self._end, self._open[1]))

    def _guarded(self, work: Callable[[], None]) -> None:
        self._inside = True
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            for listener in list(self._listeners):
                listener.fail(f"{type(error).__name__}: {error}")
        finally:
            self._inside = False

    def _begin(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        trainer, own = self._trainer(), self._own(optimizer)
        if trainer is None or own is None:
            return
        if self._open is not None and self._open[1] is own and self._open[0] is not optimizer:
            return  # an optimizer within this one
        self._open = (optimizer, own)
        # bound methods are wrapped: the optimizer itself may come first
        closure = kwargs.get("closure") or next((one for one in args if callable(one)), None)
        told = id(own) in self._told
        if closure is None and not told:
            if not _leaves_out(optimizer):
                self._tell(trainer, own)
        elif self._recorder is not None and not told and (id(own) not in self._heard or moves_early(own)):
            self._recorder.begin_step(own, optimizer_name(trainer, own), moment_of(trainer))

    def _end(self, optimizer: Optimizer) -> None:
        trainer = self._trainer()
        if trainer is None:
            return
        if id(optimizer) not in self._told and not _leaves_out(optimizer):  # a closure of its own
            self._tell(trainer, optimizer)
        self._told.discard(id(optimizer))
        self._open = None
        if self._recorder is not None:
            self._recorder.end_step(optimizer_name(trainer, optimizer))

    def _tell(self, trainer: Trainer, optimizer: Optimizer) -> None:
        self.made += 1
        self.telling = True
        try:
            for listener in list(self._listeners):
                listener.on_before_optimizer_step(trainer, trainer.lightning_module, optimizer)
        finally:
            self.telling = False
        self._told.add(id(optimizer))

    def _own(self, optimizer: Optimizer) -> Optimizer | None:
        """The Trainer's optimizer that has its parameters, else itself if it has the module's; None for others."""
        if optimizer not in self._known:
            self._known[optimizer] = self._find(optimizer)
        found = self._known[optimizer]
        return optimizer if found is True else found() if found else None

    def _find(self, optimizer: Optimizer) -> Any:
        trainer = self._trainer()
        if trainer is None:
            return False
        held = _parameters(optimizer)
        for one in trainer.optimizers:
            if one is optimizer:
                return True
            if held & _parameters(one):
                return ref(one)
        return bool(held & {id(parameter) for parameter in trainer.lightning_module.parameters()})

    def _others(self) -> Iterator[Optimizer]:
        """Those with the module's parameters that the Trainer does not know."""
        trainer = self._trainer()
        for optimizer, found in self._known.items():
            if found is True and trainer is not None and not optimizer_name(trainer, optimizer):
                yield optimizer


def moves_early(optimizer: Optimizer) -> bool:
    """Whether a step may move the weights before the gradient is known, as those of SAM and L-BFGS do.

    Other optimizers of PyTorch don't; of those of other people nothing is known.
    """
    return isinstance(optimizer, LBFGS) or not type(optimizer).__module__.startswith("torch.optim.")


def _leaves_out(optimizer: Optimizer) -> bool:
    """Whether a loss scaler has told a fused optimizer that its gradients overflowed: it then moves nothing."""
    overflowed = getattr(optimizer, "found_inf", None)
    return overflowed is not None and bool(overflowed)


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


_ALL: WeakKeyDictionary[Trainer, RawSteps] = WeakKeyDictionary()


def raw_steps_of(trainer: Trainer) -> RawSteps:
    """Those of a Trainer."""
    if trainer not in _ALL:
        _ALL[trainer] = RawSteps(trainer)
    return _ALL[trainer]


def optimizer_steps(trainer: Trainer) -> int:
    """All steps that the Trainer's optimizers made: Lightning's count, and those that it does not know of."""
    known = _ALL.get(trainer) if _ALL else None  # none with automatic optimization: each step asks twice
    return trainer.global_step + (0 if known is None else known.made)
