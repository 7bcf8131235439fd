"""Optimizer steps that Lightning does not tell of: those of the optimizer itself, with manual optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

from torch.optim import Optimizer

from bnlab_callbacks.core.lightning.names import LightningModule, Trainer


class HearsOfSteps(Protocol):
    """A callback that Lightning tells of optimizer steps."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """An optimizer step is about to be made."""


class RawSteps:
    """Tells callbacks of steps of `self.optimizers(use_pl_optimizer=False)`, as Lightning does of its own.

    Seen by a hook on the optimizer. A step with a closure is Lightning's (or makes its gradients itself); without one
    it is a loss scaler's, of which Lightning has told right before, or one of which nobody knows.

    Attributes:
        made: steps of which nobody else knew.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.made = 0
        self._trainer = ref(trainer)
        self._listeners: list[HearsOfSteps] = []
        self._handles: list[Any] = []
        self._told: set[int] = set()

    def join(self, listener: HearsOfSteps) -> None:
        """Tell one more callback; the first one's joining puts the hooks on. Harmless when repeated."""
        trainer = self._trainer()
        if listener in self._listeners or trainer is None:
            return
        self._listeners.append(listener)
        if not self._handles:
            self._handles = [one.register_step_pre_hook(self._before_step) for one in trainer.optimizers]

    def leave(self, listener: HearsOfSteps) -> None:
        """Tell a callback no more; the last one's leaving takes the hooks off. Harmless when repeated."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        if not self._listeners:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def told(self, optimizer: Optimizer) -> None:
        """Lightning has told of the next step."""
        self._told.add(id(optimizer))

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        told = id(optimizer) in self._told
        self._told.discard(id(optimizer))
        trainer = self._trainer()
        # bound methods are wrapped: the optimizer itself may come first
        closure = kwargs.get("closure") or next((one for one in args if callable(one)), None)
        if told or closure is not None or trainer is None:
            return
        self.made += 1
        for listener in self._listeners:
            listener.on_before_optimizer_step(trainer, trainer.lightning_module, optimizer)
        self._told.discard(id(optimizer))


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
