"""When to record: every n optimizer steps, the run's first step, and at least one step of every epoch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from bnlab_callbacks.core.lightning.names import Trainer, logged_step


class RecordSchedule:
    """Divides a run into slots of `every_n_steps` optimizer steps, cut at epoch borders; one step a slot is recorded.

    So steps 0, n, 2n, … are recorded, and the first step of every epoch, however small the data.

    Args:
        every_n_steps: length of a slot; None takes the Trainer's `log_every_n_steps` (0 there records nothing).

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps={every_n_steps} is below 1: give the number of optimizer steps between two records, or "
                "None for the Trainer's log_every_n_steps; enabled=False switches the callback off."
            )
        self.every_n_steps = every_n_steps
        self.restart()

    def due(self, trainer: Trainer, stream: str = "") -> bool:
        """Whether the coming step is to be recorded; `stream` tells apart things with schedules of their own."""
        return self._due(trainer, logged_step(trainer), stream)

    def next_step_is_due(self, trainer: Trainer) -> bool:
        """Whether, a step having just ended, the very next one of this epoch is to be recorded too."""
        return any(self._due(trainer, logged_step(trainer) + 1, stream) for stream in self._recorded)

    def next_step(self, trainer: Trainer, streams: Sequence[str] = ("",)) -> int:
        """The step to be recorded next, if it comes in this epoch: for one of `streams`, or another one known."""
        return min(self._next(trainer, stream) for stream in {*streams, *self._recorded})

    def _due(self, trainer: Trainer, step: int, stream: str) -> bool:
        return step >= self._next(trainer, stream)

    def _next(self, trainer: Trainer, stream: str) -> int:
        """The first step of the next slot; 0 in an epoch that has no record yet."""
        every = self._every(trainer)
        if not every:
            return sys.maxsize
        epoch, last = self._recorded.get(stream, (-1, 0))
        return 0 if epoch != trainer.current_epoch else max((last // every + 1) * every, self._not_before)

    def _every(self, trainer: Trainer) -> int:
        return self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined] # set by a connector

    def mark(self, trainer: Trainer, stream: str = "") -> None:
        """Note that the coming step is recorded."""
        if self._every(trainer):
            self._recorded[stream] = (trainer.current_epoch, logged_step(trainer))

    def wait(self, trainer: Trainer, steps: int) -> None:
        """Record no step of this epoch before `steps` more have passed."""
        self._not_before = logged_step(trainer) + steps

    def restart(self) -> None:
        """Forget what was recorded."""
        self._recorded: dict[str, tuple[int, int]] = {}
        self._not_before = 0

    def state_dict(self) -> dict[str, Any]:
        """Lists and numbers only, so that checkpoints load with `weights_only=True`."""
        return {
            "recorded": {stream: list(last) for stream, last in self._recorded.items()},
            "not_before": self._not_before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._recorded = {stream: (epoch, step) for stream, (epoch, step) in state["recorded"].items()}
        self._not_before = state["not_before"]
