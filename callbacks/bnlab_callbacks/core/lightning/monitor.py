"""The common part of the monitors: their schedules, their readings, their checkpoints, and what they cost."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

from bnlab_callbacks.core.device import Change
from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.handover import Handover
from bnlab_callbacks.core.lightning.diagnostic import Diagnostic
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer
from bnlab_callbacks.core.lightning.publisher import Publisher, one_record_a_step, publish_epoch, publisher_of, stamp
from bnlab_callbacks.core.lightning.raw_steps import RecordsSteps
from bnlab_callbacks.core.lightning.trainer import log_interval, moment_of, sharding_strategy
from bnlab_callbacks.core.naming import layer_filter, with_new_names
from bnlab_callbacks.core.overhead import Overhead
from bnlab_callbacks.core.records import EpochMeans, Moment, Read, Record, Taken
from bnlab_callbacks.core.schedule import RecordSchedule
from bnlab_callbacks.core.shared import R


def _change(value: Any, change: Change) -> Any:
    return value.change_tensors(change)


class Monitor(Diagnostic):
    """A callback that publishes per-layer statistics of some optimizer steps.

    It is a reader of a recorder, which it may share with other callbacks of the Trainer. Records are published together
    with those of the other monitors, up to 32 of one at a time, when a step begins 3 seconds after the first of them or
    later (with several ranks or a budget: as soon as a step is not recorded), at the end of each epoch, before a
    checkpoint, and when the run ends in whatever way.

    Args:
        every_n_steps: optimizer steps between two records; None for the Trainer's `log_every_n_steps`.
        layers: regular expression searched in layer names; None for all layers.
        enabled: False switches the callback off.
        budget: largest share of the training time that this callback may take (0.01 for 1 %): it then records
            less often than `every_n_steps` says, but still once per epoch; None for no limit.

    Raises:
        ValueError: `every_n_steps` below 1, `budget` not above 0, or `layers` no regular expression.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        layers: str | None = None,
        enabled: bool = True,
        budget: float | None = None,
    ) -> None:
        super().__init__(enabled)
        if budget is not None and not budget > 0:
            raise ValueError(f"budget={budget} is not above 0: give a share of the training time, 0.01 for 1 %.")
        self.schedule = RecordSchedule(every_n_steps)
        self.layers = layers
        self.budget = budget
        self.overhead = Overhead()
        self._filter = layer_filter(layers)
        self._means = EpochMeans()
        self._publisher: Publisher | None = None
        self._recorder: Any = None
        self._trainer: Trainer | None = None  # while active
        self._moment = Moment(0, 0)
        self._latest: dict[str, float] = {}
        self._loaded: dict[str, Any] = {}
        self._epoch = 0  # of the last record
        self._in_batch = False
        self._handover = Handover()

    @property
    def latest(self) -> dict[str, float]:
        """The last record, tag → value; empty before the first."""
        self._publish_kept()
        self.take_over()
        return self._latest

    # what a monitor of one kind adds

    def watch(self, trainer: Trainer, model: nn.Module) -> None:
        """Join a recorder, before anything is compiled."""
        raise NotImplementedError

    def begin_batch(self, trainer: Trainer) -> None:
        """Tell the recorder that a batch begins."""

    def end_batch(self, trainer: Trainer) -> None:
        """Tell the recorder that a batch is over."""

    def end_raised_batch(self, trainer: Trainer) -> None:
        """Tell the recorder that a batch has ended in an exception: what it left is that of a step."""
        self.end_batch(trainer)

    @property
    def step_recorder(self) -> RecordsSteps | None:
        """The recorder, where it wants to know of the beginning and end of optimizer steps."""
        return None

    def drop_window(self) -> None:
        """Tell the recorder that the gradients accumulated so far will end in no step."""

    @property
    def never_due(self) -> bool:
        """Whether no interval was given, neither to this monitor nor to the Trainer."""
        return self.schedule.never

    def epoch_values(self) -> dict[str, float]:
        """Values that an epoch has beside the means over its records; start the next epoch."""
        return {}

    def results(self) -> dict[str, Any]:
        """What is to be seen after a run, also if the run was in another process; of lists, texts and numbers."""
        return {"latest": self._latest}

    def load_results(self, results: dict[str, Any]) -> None:
        """Take over the results of a run in another process."""
        self._latest = results["latest"]

    def take_over(self) -> None:
        """Have the results of a run in another process that this one started, if there are any."""
        if (results := self._handover.take()) is not None:
            self.load_results(results)

    # a reader of a recorder

    def join(self, kind: type[R], model: nn.Module) -> R:
        """Join the run's recorder of a kind."""
        assert self._publisher is not None
        recorder = self._recorder = self._publisher.recorders.join(kind, self, model)
        return recorder

    def leave(self) -> None:
        """Leave the recorder; harmless when repeated."""
        if self._recorder is not None:
            self._recorder.leave(self)
        self._recorder = None

    @property
    def leads(self) -> bool:
        """Whether it is this reader that tells the recorder what the training loop does."""
        return self._recorder is not None and self._recorder.leader is self

    def due(self, moment: Moment, stream: str = "") -> bool:
        """Whether the step of this moment is to be recorded."""
        return self.schedule.due(moment, stream)

    def mark(self, moment: Moment, stream: str = "") -> None:
        """Note that it is recorded."""
        self.schedule.mark(moment, stream)

    def wants(self, layer: str) -> bool:
        """Whether the layer filter lets `layer` through."""
        return self._filter.search(layer) is not None

    @keeps_training
    def keep(self, left: Any, read: Read, seconds: float = 0.0) -> None:
        """Keep what a step left until it is published; `read` makes tables of it, `seconds` it took to record."""
        assert self._trainer is not None
        assert self._publisher is not None
        self.overhead.add(seconds)
        self.overhead.count_record()
        self._epoch = self._trainer.current_epoch
        with self.overhead.measure():  # with a budget several ranks wait for each other
            self._publisher.keep(self, Taken(left, _change, stamp(self._trainer, {}), read))
            self._keep_to_budget()

    def _keep_to_budget(self) -> None:
        if self.budget is None or self._publisher is None:
            return
        pause = self.overhead.pause(self.budget)
        ranks = self._publisher.recorders.ranks
        if ranks.size > 1:  # all must record the same steps
            pause = int(ranks.gather(torch.tensor([pause], device=ranks.device)).max())
        self.pause(pause)

    def pause(self, steps: int) -> None:
        """Record no step of this epoch before `steps` more have passed."""
        self.schedule.wait(self._moment, steps)

    def recorder_failed(self, reason: str) -> None:
        """Publish what was recorded before, and give up."""
        self._publish_kept()
        if self.active:
            self.give_up(reason)

    # one whose records are published

    @property
    def prompt(self) -> bool:
        """Whether ranks must act together, or a budget counts the time of records."""
        return self.budget is not None or (self._trainer is not None and self._trainer.world_size > 1)

    @property
    def unmeasured(self) -> bool:
        """Whether a budget counts the time of reading records, and nothing is known of it."""
        return self.budget is not None and self.overhead.records == 1

    def records_in(self, moment: Moment) -> bool:
        """Whether the step of this moment is recorded."""
        return self.schedule.any_due(moment)

    @keeps_training
    def read_records(self, taken: Sequence[Taken], into: list[Record]) -> None:
        """Add the records of some steps, in order."""
        by_kind: dict[Read, list[Taken]] = {}
        for one in taken:
            by_kind.setdefault(one.read, []).append(one)
        records: list[Record] = []
        for read, alike in by_kind.items():
            stamps = iter([one.record for one in alike])
            for table in read([one.value for one in alike]):
                rows = list(islice(stamps, len(table.values)))
                if table.tags:  # not left out
                    self._means.add(table.tags, table.values)
                    values = [dict(zip(table.tags, row, strict=True)) for row in table.values.tolist()]
                    records += [row._replace(values=each) for row, each in zip(rows, values, strict=True)]
        if records:
            merged = one_record_a_step(records)
            self._latest = merged[-1].values
            into += merged

    def heed_failures(self) -> None:
        """Stop if reading records showed that recording failed; called in the same batches on all ranks."""

    # one fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run, however it ended; a checkpoint's records are loaded after this."""
        if stage == "fit":
            self.close()  # here: no reader of that run may be left when the first one joins a recorder of this run
            self.schedule.restart()
            self._loaded = {}
            self._state, self._in_batch = None, False
            self.take_over()  # what is older than this run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to watch the model."""
        sharding = sharding_strategy(trainer)
        if self.enabled and sharding:
            self.give_up(
                f"{sharding} keeps only a part of each layer on a rank, and statistics of parts would be wrong. "
                "Use the ddp strategy to see them."
            )
        self.active = self.enabled and not sharding
        self._start(trainer, pl_module)

    @keeps_training
    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.schedule.start(log_interval(trainer))
        self.overhead = Overhead()
        self._means = EpochMeans(self._loaded.get("means", ()))
        self._epoch = self._loaded.get("epoch", 0)
        self._trainer, self._publisher = trainer, publisher_of(trainer)
        if self.never_due:
            self.give_up(
                "the Trainer's log_every_n_steps is 0, as with barebones=True. Set every_n_steps=50, say, to record."
            )
            return
        self._publisher.join(self)
        self.watch(trainer, pl_module)

    @keeps_training
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hear of all optimizer steps."""
        self.hear_of_raw_steps(trainer, self.step_recorder)

    def close(self) -> None:
        """Leave nothing behind: no hooks, buffers or references. Harmless when repeated."""
        super().close()
        self.leave()
        if self._publisher is not None:
            self._publisher.leave(self)
        self._trainer = self._publisher = None
        self._means = EpochMeans()

    @keeps_training
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Prepare for a step."""
        self.overhead.begin_step()
        self._moment = moment_of(trainer)
        assert self._publisher is not None
        self._publisher.publish_if_due(trainer, self._moment)
        self.heed_failures()
        if self._epoch != self._moment.epoch and self._means:
            # a checkpoint cut it off after its last batch: resumed, Lightning does not end it
            publish_epoch(trainer, self._means.pop() | self.epoch_values(), self._epoch)
        if self.active:
            self._in_batch = True
            self.begin_batch(trainer)

    @keeps_training
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take what the batch left."""
        self._in_batch = False
        self.end_batch(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its time is no training step's."""
        self.overhead.end_step()

    @keeps_training
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish what is kept, the epoch's means, and what the monitors cost."""
        self.overhead.end_step()
        self._in_batch = False  # if the LightningModule has skipped the rest of the epoch
        if pl_module.automatic_optimization:
            self.drop_window()  # each epoch begins with gradients of 0
        self._publish_kept()
        if not self.active or self._publisher is None:
            return
        with self.overhead.measure():
            values = self._means.pop() | self.epoch_values()
        monitors = self._publisher.monitors
        if self is monitors[-1]:
            values["diagnostics/overhead_frac"] = sum(monitor.overhead.fraction for monitor in monitors)
        publish_epoch(trainer, values)
        self.heed_failures()

    @keeps_training
    def _publish_kept(self) -> None:
        if self._publisher is not None and self._trainer is not None:
            self._publisher.publish_kept(self._trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Publish what led up to the exception, and stop: Lightning calls no other hook then."""
        self.settle(trainer)
        self._stop(trainer)

    @keeps_training
    def end_unfinished(self, trainer: Trainer) -> None:
        """Take what a batch has left that did not come to its end; harmless when repeated."""
        if self._in_batch:
            self._in_batch = False
            self.end_raised_batch(trainer)

    @keeps_training
    def keep_state(self, trainer: Trainer) -> None:
        """Keep the state for checkpoints that are written from now on: within a batch, as before its step."""
        if self._in_batch:
            self.schedule.unmark(self._moment)
        super().keep_state(trainer)

    def _stop(self, trainer: Trainer) -> None:
        self.keep_state(trainer)
        self._publish_kept()
        self._hand_over(trainer)
        self.close()

    @keeps_training
    def _hand_over(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            self._handover.leave(self.results())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop, also where `fit` never began."""
        self.close()

    # checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Publish what is kept: a run that goes on from this checkpoint will not record it again."""
        self._publish_kept()
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to record what the undisturbed one would; primitives and tensors only."""
        self._publish_kept()
        return {"schedule": self.schedule.state_dict(), "means": self._means.state_dict(), "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._loaded = with_new_names(state_dict)
        self.schedule.load_state_dict(state_dict["schedule"])
