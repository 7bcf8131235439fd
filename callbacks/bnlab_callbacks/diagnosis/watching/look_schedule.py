"""Which steps a diagnosis looks at: all at the beginning of a run, where most failures show, and fewer and fewer."""

from __future__ import annotations

from bnlab_callbacks.core.lightning.names import Trainer, logged_step
from bnlab_callbacks.core.schedule import RecordSchedule

_FEWER = 5  # behind the first steps one of so many, until so many times as many


class LookSchedule(RecordSchedule):
    """Every step at the beginning, then one of five for a while, then one of n.

    Args:
        first_steps: so many steps are all recorded, and one of five of the next four times as many.
        every_n_steps: and then one of so many.
    """

    def __init__(self, first_steps: int, every_n_steps: int) -> None:
        super().__init__(every_n_steps)
        self.first_steps = first_steps
        self.borrowed = False  # the step is recorded by somebody else
        self._streams: dict[str, int] = {}

    def due(self, trainer: Trainer, stream: str = "") -> bool:
        """Whether the coming step is to be recorded."""
        step = logged_step(trainer)
        return not self.borrowed and self.records(step) and self._streams.get(stream) != step

    def records(self, step: int) -> bool:
        """Whether a step is recorded."""
        return self.next_from(step) == step

    def next_from(self, step: int) -> int:
        """The first step that is recorded, from `step` on."""
        assert self.every_n_steps is not None
        if step < self.first_steps:
            return step
        soon, late = (-(-step // every) * every for every in (_FEWER, self.every_n_steps))
        return min(soon, late) if soon < _FEWER * self.first_steps else late

    def looks(self, step: int) -> bool:
        """Whether who cannot wait looks when a recorded step has ended: at dense ones in fives, but the first."""
        return step < _FEWER or step % _FEWER == 0 or step >= self.first_steps

    def next_step_is_due(self, trainer: Trainer) -> bool:
        """Always no: what is kept is fetched by the diagnosis."""
        return False

    def mark(self, trainer: Trainer, stream: str = "") -> None:
        """Several steps of one optimizer within a batch are one."""
        self._streams[stream] = logged_step(trainer)
