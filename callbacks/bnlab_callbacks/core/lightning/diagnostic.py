"""The common part of all callbacks: each can be off, and ends itself rather than the run when it fails."""

from __future__ import annotations

from torch.optim import Optimizer

from bnlab_callbacks.core.lightning.names import Callback, Trainer, rank_zero_warn
from bnlab_callbacks.core.lightning.raw_steps import RawSteps, raw_steps_of


class Diagnostic(Callback):
    """A callback that never breaks a run.

    Attributes:
        active: whether it is at work in the present run.

    Args:
        enabled: False switches the callback off.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.active = False
        self._raw_steps: RawSteps | None = None

    def hear_of_raw_steps(self, trainer: Trainer) -> None:
        """With manual optimization be told of the steps of optimizers themselves as well, until `close`."""
        if not trainer.lightning_module.automatic_optimization:
            self._raw_steps = raw_steps_of(trainer)
            self._raw_steps.join(self)

    def told_of(self, optimizer: Optimizer) -> None:
        """Lightning has told of a step: it is not to be told of again."""
        if self._raw_steps is not None:
            self._raw_steps.told(optimizer)

    def close(self) -> None:
        """Leave nothing behind: no hooks, buffers or references. Harmless when repeated."""
        self.active = False
        if self._raw_steps is not None:
            self._raw_steps.leave(self)
        self._raw_steps = None

    def give_up(self, reason: str) -> None:
        """Say once why nothing more is done, and let training go on."""
        self.close()
        rank_zero_warn(f"{type(self).__name__} is off for the rest of this run: {reason}")

    def fail(self, reason: str) -> None:
        """Take note of an error in a method that `keeps_training`."""
        self.give_up(reason)
