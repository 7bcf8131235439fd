"""The common part of all callbacks: each can be off, and ends itself rather than the run when it fails."""

from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer

from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.lightning.names import Callback, LightningModule, Trainer, rank_zero_warn
from bnlab_callbacks.core.lightning.raw_steps import RawSteps, RecordsSteps, moves_early, raw_steps_of
from bnlab_callbacks.core.lightning.trainer import batch_is_over, callbacks_of


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
        self._state: dict[str, Any] | None = None  # of checkpoints, once the run is over

    def hear_of_raw_steps(self, trainer: Trainer, recorder: RecordsSteps | None = None) -> None:
        """With manual optimization be told of the steps of optimizers themselves as well, until `close`.

        A recorder of gradients is also told of the beginning and end of steps that may evaluate the loss themselves.
        """
        early = recorder is not None and any(map(moves_early, trainer.optimizers))
        if early or not trainer.lightning_module.automatic_optimization:
            self._raw_steps = raw_steps_of(trainer)
            self._raw_steps.join(self, recorder)

    def told_of(self, optimizer: Optimizer) -> bool:
        """Take note of a step that is about to be made; gives whether Lightning does not know of it."""
        return self._raw_steps is not None and self._raw_steps.told(optimizer)

    def close(self) -> None:
        """Leave nothing behind: no hooks, buffers or references. Harmless when repeated."""
        self.active = False
        if self._raw_steps is not None and self._raw_steps.leave(self):
            self._raw_steps = None

    def give_up(self, reason: str) -> None:
        """Say once why nothing more is done, and let training go on."""
        self.close()
        rank_zero_warn(f"{type(self).__name__} is off for the rest of this run: {reason}")

    def fail(self, reason: str) -> None:
        """Take note of an error in a method that `keeps_training`."""
        self.give_up(reason)

    # the end of a run, which checkpoints may be written at

    def settle(self, trainer: Trainer) -> None:
        """Prepare all diagnostics of a Trainer for its end by an exception, whichever hears of it first.

        What the batch that raised has left is recorded. A checkpoint of this moment does not know of it: a run that
        goes on from there trains on that batch again. Only where the batch was over, and a callback raised, it knows.
        """
        everyone = dict.fromkeys([self, *_diagnostics_of(trainer)])
        if trainer.world_size == 1 and batch_is_over(trainer):
            for one in everyone:
                one.end_unfinished(trainer)
        for one in everyone:
            one.keep_state(trainer)
        if trainer.world_size == 1:  # other ranks may be anywhere
            for one in everyone:
                one.end_unfinished(trainer)

    def end_unfinished(self, trainer: Trainer) -> None:
        """Take what a batch has left that did not come to its end; harmless when repeated."""

    @keeps_training
    def keep_state(self, trainer: Trainer) -> None:
        """Keep the state for checkpoints that are written from now on; harmless when repeated."""
        if self._state is None:
            self._state = self.state_dict()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put in the state that was kept, if the run is over."""
        if self._state is not None and "callbacks" in checkpoint:
            checkpoint["callbacks"][self.state_key] = self._state


def _diagnostics_of(trainer: Trainer) -> Iterator[Diagnostic]:
    """The diagnostics of a Trainer, and those that others consist of."""
    for callback in callbacks_of(trainer):
        for one in (callback, *getattr(callback, "parts", ())):
            if isinstance(one, Diagnostic):
                yield one
