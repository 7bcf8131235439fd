"""Records the steps that a diagnosis looks at: gradients, activations, batch norm, losses, inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import chain
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, cast

from torch import Tensor
from torch.optim import Optimizer

from bnlab_callbacks.core.lightning.monitor import SECONDS, TOGETHER, Monitor
from bnlab_callbacks.core.lightning.names import Callback, LightningModule, Trainer, logged_step
from bnlab_callbacks.diagnosis.observations import NormBatch
from bnlab_callbacks.diagnosis.watching.batch_ends import BatchEnds, input_statistics, output_spread
from bnlab_callbacks.diagnosis.watching.look_schedule import LookSchedule
from bnlab_callbacks.diagnosis.watching.silent_monitors import (
    SilentActivationMonitor,
    SilentBatchNormMonitor,
    SilentGradientMonitor,
)
from bnlab_callbacks.diagnosis.watching.step_collector import Collected, StepCollector
from bnlab_callbacks.diagnosis.watching.task import Task, guesses, task_of

P = ParamSpec("P")

_LOSSES = 1000  # that wait to be fetched at most


def _note_failure(
    method: Callable[Concatenate[StepRecorder, P], None],
) -> Callable[Concatenate[StepRecorder, P], None]:
    """Make an error a `failure`, after which the method does nothing.

    The monitors go on: with several ranks they exchange what they record, and none may stop alone.
    """

    @wraps(method)
    def guarded(self: StepRecorder, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.failure is not None:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            self.failure = f"{type(error).__name__}: {error}"

    return cast("Callable[Concatenate[StepRecorder, P], None]", guarded)


class StepRecorder:
    """Monitors that log nothing, hooks on the net's ends, and what they left since the last `fetch`.

    Its methods are called in the Trainer's hooks of the same names.

    Attributes:
        failure: what went wrong on this rank; all ranks hear of it at the next `fetch`.
        knows_task: whether the first batch has told what the task is.
        recording: whether the present step is recorded.

    Args:
        first_steps: see `LookSchedule`.
        every_n_steps: see `LookSchedule`.
        prompt: whether what was recorded cannot wait for up to 3 seconds to be fetched with the next steps.
    """

    def __init__(self, first_steps: int, every_n_steps: int, prompt: bool = False) -> None:
        self.failure: str | None = None
        self.knows_task = False
        self.recording = False
        self.prompt = prompt
        self._at_once = prompt
        self._schedule, *others = (LookSchedule(first_steps, every_n_steps) for _ in range(3))
        self._gradients = SilentGradientMonitor(self._schedule, self._take)
        self._activations = SilentActivationMonitor(others[0], self._take)
        self._norms = SilentBatchNormMonitor(others[1], self._take)
        self._monitors = (self._gradients, self._activations, self._norms)
        self._ends = BatchEnds()
        self._collector = StepCollector()
        self._batch: Any = None
        self._steps = 0
        self._since = math.inf

    @property
    def norm_values(self) -> dict[str, NormBatch]:
        """Batch-norm layers → what the smallest batch gave them to normalize a channel with."""
        return dict(self._ends.norm_values)

    @property
    def failures(self) -> dict[str, str | None]:
        """What quantities begin with (`act_`) → why they are not recorded; None where they are."""
        kinds = {("act_", "sat_", "dead_"): self._activations, ("grad_", "weight_", "update_"): self._gradients}
        return {begin: monitor.failure for begins, monitor in kinds.items() for begin in begins}

    def stop(self) -> None:
        """Take all hooks off, and forget what was not fetched."""
        self.recording = False
        self._ends.remove()
        for monitor in self._monitors:
            monitor.stop()
        self._batch = None
        self._collector = StepCollector()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put hooks on, before anything is compiled."""
        self.failure = None
        self._at_once = self.prompt or trainer.world_size > 1
        for monitor in self._monitors:
            monitor.on_fit_start(trainer, pl_module)
        self._watch_ends(pl_module)

    @_note_failure
    def _watch_ends(self, pl_module: LightningModule) -> None:
        self._ends.watch(pl_module)

    @_note_failure
    def find_lenders(self, callbacks: Sequence[Callback], trainer: Trainer) -> None:
        """See who of `callbacks`, which are called before this, records what this would record once more."""
        for monitor in self._monitors:
            monitor.find_lender([one for one in callbacks if isinstance(one, Monitor)], trainer)

    def rests_until(self, step: int) -> int:
        """The first step that is recorded, from `step` on."""
        return self._schedule.next_from(step)

    def rest(self) -> None:
        """Take the hooks off modules until a step is recorded; `on_train_batch_start` may be left out till then."""
        self.recording = False
        self._ends.hooks.take_off()
        for monitor in self._monitors:
            monitor.rest()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open the hooks for a step that is looked at."""
        self.recording = self._schedule.records(logged_step(trainer))
        if self.recording:
            self._since = min(self._since, perf_counter())
            for monitor in self._monitors:
                monitor.choose(trainer)
                monitor.on_train_batch_start(trainer, pl_module, batch, batch_idx)
            self._open(trainer, batch)

    @_note_failure
    def _open(self, trainer: Trainer, batch: Any) -> None:
        self._ends.hooks.put_on()
        self._ends.gate.open = True
        if not self.knows_task:
            self._batch = batch
            self._collector.add_whole(logged_step(trainer), input_statistics(batch))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Shut the hooks."""
        if self.recording:
            for monitor in (self._activations, self._norms):
                monitor.on_before_backward(trainer, pl_module, loss)
            self._shut(trainer, loss.detach() * trainer.accumulate_grad_batches)

    @_note_failure
    def _shut(self, trainer: Trainer, loss: Tensor) -> None:
        output, batch = self._ends.take_output(), self._batch
        self._batch = None
        self._collector.add_whole(logged_step(trainer), output_spread(output))
        if batch is not None:
            self.knows_task = True
            self._collector.add_guesses(guesses(batch, output, loss))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the monitors' hooks again."""
        if self.recording:
            for monitor in (self._activations, self._norms):
                monitor.on_after_backward(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> bool:
        """Take the gradients; gives whether the step is looked at."""
        if self.recording:
            self._gradients.on_before_optimizer_step(trainer, pl_module, optimizer)
        return self.recording

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> bool:
        """Keep the loss and what was recorded; gives whether it is time to fetch it."""
        step = logged_step(trainer)
        loss = outputs.get("loss") if isinstance(outputs, (dict, Mapping)) else None  # a dict in most runs: asked first
        if isinstance(loss, Tensor):
            parts = trainer.accumulate_grad_batches
            loss = loss.detach() if loss.requires_grad else loss  # Lightning's own are detached
            self._collector.add_loss(step, loss if parts == 1 else loss * parts)
        if self.recording:
            for monitor in self._monitors:
                monitor.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self._ends.take_output()
            self._batch = None
            self._steps += 1
        if not self._steps and self._collector.losses < _LOSSES:
            return False
        return self._is_time(trainer, step) and not trainer.fit_loop._should_accumulate()

    def _is_time(self, trainer: Trainer, step: int) -> bool:
        """Whether to fetch now that a batch has ended; with several ranks all must do, so not by their clocks."""
        if self._collector.losses >= _LOSSES:
            return True
        if self._at_once:
            return self.recording and self._schedule.looks(step)
        # before monitors do for themselves, who find it on the host then
        return perf_counter() - self._since > SECONDS or self._steps >= TOGETHER or trainer.is_last_batch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the next epoch."""
        for monitor in self._monitors:
            monitor.on_train_epoch_end(trainer, pl_module)

    def read(self, trainer: Trainer) -> Task | None:
        """Bring everything to the host, in one copy; gives the task if that has just become known."""
        self._steps, self._since = 0, math.inf
        found = self._collector.bring_to_host(list(chain.from_iterable(one.waiting for one in self._monitors)))
        for monitor in self._monitors:
            monitor.publish_last(trainer)
        return task_of(found) if found else None

    def fetch(self, trainer: Trainer, extra: list[float], failure: str | None) -> Collected:
        """What was read, the same on all ranks, which must all call this; see `StepCollector.fetch`."""
        return self._collector.fetch(trainer, extra, failure or self.failure)

    def _take(self, step: int, values: dict[str, float]) -> None:
        self._collector.add_record(step, values)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists."""
        return {"knows_task": self.knows_task, "monitors": [monitor.state_dict() for monitor in self._monitors]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self.knows_task = state["knows_task"]
        for monitor, saved in zip(self._monitors, state["monitors"], strict=True):
            monitor.load_state_dict(saved)
