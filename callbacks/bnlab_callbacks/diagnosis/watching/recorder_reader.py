"""A diagnosis's reader of one recorder: which steps it wants, and tables of what they left."""

from typing import Any

from bnlab_callbacks.core.device import Change, DeviceValues
from bnlab_callbacks.core.records import Moment, Table
from bnlab_callbacks.diagnosis.watching.look_schedule import LookSchedule
from bnlab_callbacks.recorders.tables import ELSEWHERE


def _change(value: Any, change: Change) -> Any:
    return value.change_tensors(change)


class RecorderReader:
    """A reader of one recorder, for all layers.

    Attributes:
        failure: why nothing more is recorded.
    """

    exact_dead = False
    update_ratio = True
    vectors = False
    changed_before = 0

    def __init__(self, tables: Any, schedule: LookSchedule) -> None:
        self.tables = tables
        self.failure: str | None = None
        self.recorder: Any = None
        self.kept: list[tuple[int, DeviceValues]] = []  # step and what it left
        self._schedule = schedule
        self._marked: dict[str, int] = {}
        self._start: int | None = None  # the first step of this run, or of its resumed part

    @property
    def numbered(self) -> dict[str, str]:
        """Layers → `<NN>_<layer>`, as far as they are known."""
        known: dict[str, str] = self.tables.numbered
        return known

    def due(self, moment: Moment, stream: str = "") -> bool:
        """Whether this is an optimizer's first step at or after one to look at; its steps within a batch are one."""
        if self._start is None:  # what was due before a run went on is not made up for
            self._start = moment.step
        before = self._marked.get(stream, self._start - 1)
        return before < self._schedule.latest(moment.step)

    def mark(self, moment: Moment, stream: str = "") -> None:
        """Note that the step is recorded."""
        self._marked[stream] = moment.step

    def marked(self, stream: str) -> int | None:
        """The step of an optimizer that was recorded last."""
        return self._marked.get(stream)

    def wants(self, layer: str) -> bool:
        """Any layer."""
        return True

    def take(self, moment: Moment, left: Any, seconds: float) -> None:
        """Keep what a step left."""
        self.kept.append((moment.step, DeviceValues(left, _change)))

    def recorder_failed(self, reason: str) -> None:
        """Remember why; the diagnosis says what was not checked."""
        self.failure = self.failure or reason
        self.leave()

    @property
    def leads(self) -> bool:
        """Whether it is this reader that tells the recorder what the training loop does."""
        return self.recorder is not None and self.recorder.leader is self

    def leave(self) -> None:
        """Read no more."""
        if self.recorder is not None:
            self.recorder.leave(self)
        self.recorder = None

    def read(self) -> list[tuple[int, Table]]:
        """The tables of what was kept, of one step each, from values on the host."""
        kept, self.kept = self.kept, []
        if not kept:
            return []
        steps = iter([step for step, _ in kept])
        read = [
            (next(steps), Table(table.tags, row[None]))
            for table in self.tables.read([values.value for _, values in kept])
            for row in table.values
        ]
        if self.tables.failed:
            self.recorder_failed(getattr(self.recorder, "failure", None) or ELSEWHERE)
        return read
