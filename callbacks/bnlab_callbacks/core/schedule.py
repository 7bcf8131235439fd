"""The steps to be recorded: one of n optimizer steps, the run's first step, and the first of every epoch."""

from typing import Any

from bnlab_callbacks.core.records import Moment


class RecordSchedule:
    """Divides a run into slots of `every_n_steps` optimizer steps, cut at epoch borders; one step a slot is recorded.

    So steps 0, n, 2n, … are recorded, and the first step of every epoch, however small the data.

    Args:
        every_n_steps: length of a slot; None for the `default` of `start`.

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
        self._every = every_n_steps or 0
        self.restart()

    def start(self, default: int) -> None:
        """Begin or resume a run; `default` is the length of a slot where none was given, 0 records nothing."""
        self._every = self.every_n_steps or default

    def due(self, moment: Moment, stream: str = "") -> bool:
        """Whether the step of `moment` is to be recorded; `stream` tells apart things with schedules of their own."""
        if not self._every:
            return False
        epoch, last = self._recorded.get(stream, (-1, 0))
        if epoch != moment.epoch:
            return True
        return moment.step >= max((last // self._every + 1) * self._every, self._not_before)

    def any_due(self, moment: Moment) -> bool:
        """Whether the step is to be recorded for some stream known so far."""
        return any(self.due(moment, stream) for stream in self._recorded)

    def mark(self, moment: Moment, stream: str = "") -> None:
        """Note that the step is recorded."""
        if self._every:
            self._recorded[stream] = (moment.epoch, moment.step)

    @property
    def never(self) -> bool:
        """Whether no step is ever due."""
        return not self._every

    def wait(self, moment: Moment, steps: int) -> None:
        """Record no step of this epoch before `steps` more have passed."""
        self._not_before = moment.step + steps

    def restart(self) -> None:
        """Forget what was recorded."""
        self._recorded: dict[str, tuple[int, int]] = {}
        self._not_before = 0

    def unmark(self, moment: Moment) -> None:
        """Note that the step of this moment will be made again."""
        made = (moment.epoch, moment.step)
        self._recorded = {stream: last for stream, last in self._recorded.items() if last != made}

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
