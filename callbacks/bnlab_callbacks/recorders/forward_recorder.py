"""The common part of recorders that put hooks on modules, and their readers."""

from abc import ABC, abstractmethod
from time import perf_counter
from typing import Any, Protocol

from torch import nn

from bnlab_callbacks.core.hooks import HookOwner, ModuleHooks
from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment

# calls of a step that are kept: of more than so many, steps are made in a way that is not to be seen
_MOST_PENDING = 1 << 14


class Reader(Protocol):
    """A diagnostic that wants some steps recorded, and is given what they left."""

    def due(self, moment: Moment, stream: str = "") -> bool:
        """Whether the step of this moment is to be recorded; `stream` tells apart the steps of several optimizers."""

    def mark(self, moment: Moment, stream: str = "") -> None:
        """Note that it is recorded."""

    def wants(self, layer: str) -> bool:
        """Whether a layer is to be recorded."""

    def take(self, moment: Moment, left: Any, seconds: float) -> None:
        """Take what a step left, and what it cost this reader to record."""

    def recorder_failed(self, reason: str) -> None:
        """Hear that nothing more can be recorded, and leave the recorder."""


class ForwardRecorder(HookOwner, ABC):
    """Records the forward passes of those training steps that are due for one of its readers.

    All of a step's accumulated batches count, forward passes within a backward pass do not: they are checkpointing's
    repetitions. The first reader, the `leader`, tells it what the training loop does.

    Args:
        model: the model; its hooks go on at once, before anything is compiled.
        ranks: of the run; all record the same steps.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self.readers: list[Any] = []
        self.recording = False  # whether the present step is recorded
        self.hooks = ModuleHooks(self.gate)
        self.ranks = ranks
        self._due: dict[Any, int] = {}  # readers → the first of the pending calls that they are to get
        self._pending: list[Any] = []
        self._optimizer_steps = -1
        self.watch(model)

    # what a recorder of one kind adds

    @abstractmethod
    def watch(self, model: nn.Module) -> None:
        """Put the hooks on."""

    @abstractmethod
    def pop_calls(self) -> list[Any]:
        """What the hooks recorded in the batch that has just ended; start anew."""

    @abstractmethod
    def leave_step(self, moment: Moment, calls: list[Any]) -> Any | None:
        """What readers get of a step, exchanged among ranks, from the calls of all its batches; None for nothing."""

    # readers

    @property
    def leader(self) -> Any | None:
        """The reader that is to call the methods below."""
        return self.readers[0] if self.readers else None

    def join(self, reader: Reader) -> None:
        """Record for one more reader."""
        self.readers.append(reader)

    def leave(self, reader: Reader) -> None:
        """Record no more for a reader; the last one's leaving takes all hooks off."""
        if reader in self.readers:
            self.readers.remove(reader)
        if not self.readers:
            self.hooks.remove()

    # a training loop

    def begin_batch(self, moment: Moment, optimizer_steps: int) -> None:
        """A batch begins; `optimizer_steps` is the number of steps made so far."""
        for reader in self.readers:
            # one may be due in the middle of another's step: with manual optimization a batch may make none
            if reader not in self._due and reader.due(moment):
                self._due[reader] = len(self._pending)
        self._optimizer_steps = optimizer_steps
        self.recording = bool(self._due)
        if self.listens:
            self.hooks.put_on()
            self.gate.open = True
        else:
            self.hooks.take_off()

    @property
    def listens(self) -> bool:
        """Whether the hooks are to do something in the present step."""
        return self.recording

    def before_backward(self) -> None:
        """A backward pass begins."""
        self.gate.open = False

    def after_backward(self) -> None:
        """It is over: with manual optimization more forward passes may follow in this step."""
        self.gate.open = self.listens

    def drop_window(self) -> None:
        """Forget the batches that were accumulated for a step that is never made; harmless when there are none."""
        self.gate.open = self.recording = False
        self._pending, self._due = [], {}

    def end_batch(self, moment: Moment, optimizer_steps: int) -> None:
        """A batch is over; if it made an optimizer step, the readers get what the step left."""
        if not self.listens:
            return
        start = perf_counter()
        self.gate.open = False
        self._pending += self.pop_calls()
        if not self._due or optimizer_steps == self._optimizer_steps:  # not recorded, or accumulating
            if len(self._pending) > _MOST_PENDING:
                self._pending, self._due = [], {}
            return
        due, self._due, self.recording = self._due, {}, False
        pending, self._pending = self._pending, []
        for reader in due:
            reader.mark(moment)
        left = {first: self.leave_step(moment, pending[first:]) for first in dict.fromkeys(due.values())}
        seconds, self.spent = self.spent + perf_counter() - start, 0.0
        for reader, first in due.items():
            if left[first] is not None and reader in self.readers:
                reader.take(moment, left[first], seconds / len(due))
        if self.failure and self.ranks.size == 1:  # of several, all hear of it with the step's values
            for reader in list(self.readers):
                reader.recorder_failed(self.failure)
