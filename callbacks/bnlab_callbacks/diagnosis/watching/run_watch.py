"""The watch that a diagnosis keeps on a run: recorders, hooks on the net's ends, and losses, step by step."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnlab_callbacks.core.batches import batch_length
from bnlab_callbacks.core.device import DeviceValues
from bnlab_callbacks.core.function_mode import FunctionMode
from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.naming import loggable
from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.core.shared import SharedRecorders
from bnlab_callbacks.diagnosis.observations import NormBatch, Task
from bnlab_callbacks.diagnosis.watching.batch_ends import BatchEnds, input_statistics, largest
from bnlab_callbacks.diagnosis.watching.candidates import Candidate, candidates
from bnlab_callbacks.diagnosis.watching.inventory import has_gradient
from bnlab_callbacks.diagnosis.watching.look_schedule import LookSchedule
from bnlab_callbacks.diagnosis.watching.loss_watch import LossWatch
from bnlab_callbacks.diagnosis.watching.recorder_reader import RecorderReader
from bnlab_callbacks.diagnosis.watching.step_collector import Collected, StepCollector
from bnlab_callbacks.diagnosis.watching.task_reader import TaskReader
from bnlab_callbacks.recorders.activation_tables import ActivationTables
from bnlab_callbacks.recorders.activations import ActivationRecorder
from bnlab_callbacks.recorders.batch_norm import BatchNormRecorder, BatchNormTables
from bnlab_callbacks.recorders.gradient_tables import GradientTables
from bnlab_callbacks.recorders.gradients import GradientRecorder

_LOSSES = 1000  # that wait to be fetched at most
_TOGETHER, _SECONDS = 32, 3.0  # recorded steps that are read together, and how long the first of them waits


class RunWatch:
    """All that a diagnosis needs to see of a run, in any training loop.

    Attributes:
        failure: what went wrong on this rank; all ranks hear of it at the next `fetch`.
        knows_inputs: whether the first batch has told what the net's inputs are like.
        recording: whether the present step is recorded.
        scales: parameters that are no layers, and are not judged as such.
        stepped: whether an optimizer was seen to make a step of gradients.
        steps: of all optimizers so far, to be told by who calls.
        several: whether more forward passes may follow a backward pass in a step (manual optimization).

    Args:
        first_steps: see `LookSchedule`.
        every_n_steps: see `LookSchedule`.
        prompt: whether what was recorded cannot wait for up to 3 seconds to be fetched with the next steps.
    """

    def __init__(self, first_steps: int, every_n_steps: int, prompt: bool = False) -> None:
        self.failure: str | None = None
        self.knows_inputs = False
        self.recording = False
        self.several = False
        self.prompt = prompt
        self.scales: set[str] = set()
        self.stepped = False
        self.steps = 0
        self._schedule = LookSchedule(first_steps, every_n_steps)
        self._gradients = RecorderReader(
            GradientTables(self._judged, weight_rms=True, changed_frac=True), self._schedule
        )
        self._gradients.changed_before = self._schedule.early
        self._activations = RecorderReader(ActivationTables(), self._schedule)
        self._norms = RecorderReader(BatchNormTables(), self._schedule)
        self._readers = (self._gradients, self._activations, self._norms)
        self._ends = BatchEnds()
        self._mode: FunctionMode | None = None  # the run's
        self._loss_watch = LossWatch(self._raw_backward)
        self._collector = StepCollector()
        self._tasks = TaskReader()
        self._shared: SharedRecorders | None = None
        self._step = 0
        self._loss: Tensor | None = None  # of the batch's first backward pass
        self._compared: list[Candidate] | None = None  # by it, in a recorded step
        self._unseen_activations: str | None = None
        self._unseen: str | None = None  # why losses are not compared with targets
        self._to_read = 0  # recorded steps
        self._rests = False  # whether nobody records the forward passes of the present batch
        self._since = math.inf

    @property
    def norm_values(self) -> dict[str, NormBatch]:
        """Batch-norm layers → what the smallest batch gave them to normalize a channel with."""
        return dict(self._ends.norm_values)

    @property
    def gates(self) -> tuple[str, ...]:
        """Activations that were seen to weigh something."""
        recorder = self._activations.recorder
        return tuple(map(loggable, recorder.gates)) if recorder is not None else ()

    def _judged(self, layer: str) -> bool:
        return layer not in self.scales

    def in_order(self, layers: Sequence[tuple[str, str]]) -> list[str]:
        """Layers, given with the modules that hold them, by execution; as they are where that is not known."""
        recorder = self._gradients.recorder
        return recorder.order.sort(layers) if recorder is not None else [layer for layer, _ in layers]

    @property
    def failures(self) -> dict[str, str | None]:
        """What quantities begin with (`act_`) → why they are not recorded; None where they are."""
        kinds = {("act_", "sat_", "dead_"): self._activations, ("grad_", "weight_", "update_"): self._gradients}
        off = {begin: reader.failure for begins, reader in kinds.items() for begin in begins}
        off |= {begin: off[begin] or self._not_seen() for begin in ("act_", "sat_", "dead_")}
        return off | {"explained": self._unseen or self._loss_watch.failure}

    def _not_seen(self) -> str | None:
        """What is to be said of activations that were not recorded."""
        if (recorder := self._activations.recorder) is not None:
            self._unseen_activations = "; ".join(recorder.unseen.lines().values()) or (
                None
                if recorder.unseen.seen or not recorder.steps
                else "no activation function was called in a module in training mode"
            )
        return self._unseen_activations

    # one run

    @property
    def active(self) -> bool:
        """Whether nothing went wrong so far."""
        return self.failure is None

    def fail(self, reason: str) -> None:
        """Remember an error; recorders go on, since ranks exchange what they record, and none may stop alone."""
        self.failure = self.failure or reason

    def start(self, model: nn.Module, shared: SharedRecorders) -> None:
        """Put hooks on, before anything is compiled."""
        self.failure = None
        self._shared = shared
        shared.wait_with(self._waiting)
        self._gradients.recorder = shared.join(GradientRecorder, self._gradients, model)
        self._activations.recorder = shared.join(ActivationRecorder, self._activations, model)
        self._norms.recorder = shared.join(BatchNormRecorder, self._norms, model)
        if not self._norms.recorder.layers:
            self._norms.leave()
        self._watch_ends(model)

    @keeps_training
    def _watch_ends(self, model: nn.Module) -> None:
        self._ends.watch(model)
        assert self._shared is not None
        self._mode = self._shared.mode
        self._mode.join(self._loss_watch, model)

    def _waiting(self) -> Iterable[DeviceValues]:
        kept = (values for reader in self._readers for _, values in reader.kept)
        return chain(kept, self._collector.waiting())

    def stop(self) -> None:
        """Take all hooks off, and forget what was not fetched; harmless when repeated."""
        self.recording = False
        self._ends.remove()
        if self._mode is not None:
            self._mode.quit(self._loss_watch)
        self._mode = None
        self._loss_watch.forget()
        self._not_seen()
        for reader in self._readers:
            reader.leave()
            reader.kept.clear()
        if self._shared is not None:
            self._shared.wait_no_more(self._waiting)
        self._shared = self._loss = self._compared = None
        self._collector = StepCollector()

    # a training loop

    def begin_batch(self, moment: Moment, optimizer_steps: int, batch: Any) -> None:
        """A batch begins; `optimizer_steps` is the number of steps made so far."""
        before, self.recording = self.recording, self._schedule.records(moment.step)
        self._step, self._loss, self._compared = moment.step, None, None
        if self._gradients.leads:
            self._gradients.recorder.begin_batch()
        for reader in (self._activations, self._norms):
            if reader.leads:
                reader.recorder.begin_batch(moment, optimizer_steps)
        recorders = (self._activations.recorder, self._norms.recorder)
        self._rests = not (self.recording or self.several or any(one and one.listens for one in recorders))
        if self.recording:
            self._open(batch)
        else:
            if before:
                self._ends.listen(False)
            if self._mode is not None:
                self._mode.rest()

    @keeps_training
    def _open(self, batch: Any) -> None:
        self._since = min(self._since, perf_counter())
        self._ends.listen(True)
        self._ends.norm_values.clear()
        if samples := batch_length(batch):
            self._collector.add_globals(self._step, {"samples": torch.tensor(float(samples))})
        self._loss_watch.begin(batch)
        if self._mode is not None:
            self._mode.enter(self._loss_watch)

    def _look_away(self) -> None:
        if self._mode is not None:
            self._mode.leave(self._loss_watch)

    def before_backward(self, loss: Tensor, accumulated: int = 1, scaled: bool = False) -> None:
        """A backward pass begins.

        Args:
            loss: the batch's.
            accumulated: the number of accumulated batches that it is divided by.
            scaled: whether a loss scaler has multiplied it by what is not known.
        """
        if self._rests:
            return
        if self.recording:
            self._look_away()
        for reader in (self._activations, self._norms):
            if reader.leads:
                reader.recorder.before_backward()
        if self._loss is None and (self.recording or self.several):
            self._close(loss, math.nan if scaled else accumulated)

    def _raw_backward(self, loss: Tensor) -> None:
        """`loss.backward()` is called, past the training loop."""
        if self._loss is None and self.recording:
            self._close(loss, 1)

    @keeps_training
    def _close(self, loss: Tensor, factor: float) -> None:
        if self.recording:
            first, inputs, output = self._ends.take()
            self._collector.add_globals(self._step, largest(output))
            if first is not None and not self.knows_inputs:
                self.knows_inputs = True
                self._ends.keeps_inputs = False
                self._collector.add_globals(self._step, input_statistics(inputs, first))
            try:
                self._compared = candidates(self._loss_watch.take(loss))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:  # of a loss unlike all that is known
                self._unseen = f"{type(error).__name__}: {error}"
        self._loss = number(loss) if factor == 1 else number(loss) * factor

    def after_backward(self) -> None:
        """It is over."""
        if self._rests:
            return
        for reader in (self._activations, self._norms):
            if reader.leads:
                reader.recorder.after_backward()
        if self.recording and self.several and self._mode is not None:
            self._mode.enter(self._loss_watch, again=True)

    @property
    def step_recorder(self) -> GradientRecorder | None:
        """The recorder of gradients."""
        recorder: GradientRecorder | None = self._gradients.recorder
        return recorder

    @property
    def leads_gradients(self) -> bool:
        """Whether it is from here that the recorder of gradients hears of the training loop."""
        return self._gradients.leads

    def before_optimizer_step(
        self, optimizer: Optimizer, stream: str, moment: Moment, loss_scale: Callable[[], float], raw: bool = False
    ) -> None:
        """An optimizer step is about to be made; see `GradientRecorder`."""
        if self._gradients.leads:
            self._gradients.recorder.before_optimizer_step(optimizer, stream, moment, loss_scale, raw)
        if self._gradients.marked(stream) == moment.step:  # a look of this optimizer's own
            self.recording = True
            self._since = min(self._since, perf_counter())
        if self.recording and not self.stepped:
            self.stepped = has_gradient(optimizer)

    def end_batch(self, moment: Moment, optimizer_steps: int, loss: Tensor | None) -> None:
        """A batch is over; `loss` is undivided by the number of accumulated ones, None where none was returned.

        Then it is that of the batch's first backward pass, where that was seen.
        """
        loss = self._loss if loss is None else number(loss)
        if loss is not None:
            self._collector.add_loss(moment.step, loss)
        if self._gradients.leads:
            self._gradients.recorder.end_batch(moment)
        for reader in () if self._rests else (self._activations, self._norms):
            if reader.leads:
                reader.recorder.end_batch(moment, optimizer_steps)
        if self.recording:
            self._look_away()
            if loss is not None and self._compared:
                self._collector.add_compared(moment.step, loss, self._compared)
            self._ends.take()
            self._loss_watch.forget()
            self._to_read += 1

    def end_unfinished(self, moment: Moment) -> None:
        """A batch did not come to its end, and other ranks may be anywhere: keep what needs none of them."""
        self._look_away()
        if self._loss is not None:
            self._collector.add_loss(moment.step, self._loss)
            if self._compared:
                self._collector.add_compared(moment.step, self._loss, self._compared)

    def skip_batch(self, accumulated: bool) -> None:
        """A batch is left out with the rest of its epoch; `accumulated` if what it was to be added to is lost."""
        self._look_away()
        self._loss_watch.forget()
        self._ends.take()
        self.recording = False
        for reader in (self._activations, self._norms):
            if reader.recorder is not None and accumulated:
                reader.recorder.drop_window()

    def is_time(self, step: int, last: bool) -> bool:
        """Whether to look, now that a step is made; with several ranks all must do, so not by their clocks.

        Args:
            step: the step.
            last: whether it is the epoch's last one.
        """
        if self._collector.losses >= _LOSSES:
            return True
        if not self._to_read:
            return False
        if self.prompt or (self._shared is not None and self._shared.ranks.size > 1):
            return self.recording and self._schedule.looks(step)
        # before monitors do for themselves, who find it on the host then
        return last or self._to_read >= _TOGETHER or perf_counter() - self._since > _SECONDS

    # what was seen

    def read(self) -> Task | None:
        """Bring everything to the host, in one copy; gives the task, as far as it is known."""
        self._to_read, self._since = 0, math.inf
        if self._shared is not None:
            self._shared.bring_to_host()
        for step, loss, compared in self._collector.read():
            self._collector.add_numbers(step, self._tasks.read(float(loss), compared))
        for reader in self._readers:
            for step, table in reader.read():
                self._collector.add_record(step, dict(zip(table.tags, table.values[0].tolist(), strict=True)))
        return self._tasks.task if self._tasks.known else None

    def fetch(self, extra: list[float], failure: str | None, alone: bool = False) -> Collected:
        """What was read, the same on all ranks, which must all call this unless `alone`; see `StepCollector.fetch`."""
        assert self._shared is not None
        ranks = Ranks() if alone else self._shared.ranks
        return self._collector.fetch(ranks, extra, failure or self.failure)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, lists and tensors, by the names that they have had since version 0.1.0."""
        tables = [self._state(reader.tables) for reader in self._readers]
        return {
            "knows_task": self.knows_inputs,
            "monitors": tables,
            "stepped": self.stepped,
            "task": self._tasks.state_dict(),
        }

    def _state(self, tables: Any) -> dict[str, Any]:
        return {"numbered": dict(tables.numbered)} if isinstance(tables, BatchNormTables) else tables.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self.knows_inputs = state["knows_task"]
        self._ends.keeps_inputs = not self.knows_inputs
        self.stepped = state["stepped"]
        if "task" in state:  # not in version 0.1.0
            self._tasks.load_state_dict(state["task"])
        for reader, saved in zip(self._readers, state["monitors"], strict=True):
            if isinstance(reader.tables, BatchNormTables):
                reader.tables.numbered = dict(saved.get("numbered", {}))
            else:
                reader.tables.load_state_dict(saved)


def number(loss: Tensor) -> Tensor:
    """A loss without its graph and, where it has dimensions, (1,) as a rule, as one number."""
    loss = loss.detach() if loss.requires_grad else loss
    return loss.mean() if loss.ndim else loss
