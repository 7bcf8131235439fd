"""When to record: every n optimizer steps, the run's first step, and at least one step of every epoch."""

from __future__ import annotations

from typing import Any

from bnlab_callbacks.lightning_api import Trainer, logged_step


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
        self._recorded: dict[str, list[int]] = {}

    def slot(self, trainer: Trainer) -> list[int] | None:
        """The slot of the coming optimizer step as [epoch, step // n]; None where nothing is recorded."""
        every = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined] # set by a connector
        return [trainer.current_epoch, logged_step(trainer) // every] if every else None

    def due(self, trainer: Trainer, stream: str = "") -> bool:
        """Whether the coming step is to be recorded; `stream` tells apart things with schedules of their own."""
        slot = self.slot(trainer)
        return slot is not None and self._recorded.get(stream) != slot

    def mark(self, trainer: Trainer, stream: str = "") -> None:
        """Note that this slot has its record."""
        slot = self.slot(trainer)
        if slot is not None:
            self._recorded[stream] = slot

    def restart(self) -> None:
        """Forget what was recorded."""
        self._recorded = {}

    def state_dict(self) -> dict[str, Any]:
        """Lists and numbers only, so that checkpoints load with `weights_only=True`."""
        return {"recorded": {stream: list(slot) for stream, slot in self._recorded.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._recorded = {stream: list(slot) for stream, slot in state["recorded"].items()}
