"""What the monitors share: when they record and publish, what they cost, and that they never break a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import islice
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import torch

from bnlab_callbacks.core.device import Change, bring_to_host
from bnlab_callbacks.core.forward_order import Gate
from bnlab_callbacks.core.lightning.idle_hooks import call_again, can_be_idle, pass_over
from bnlab_callbacks.core.lightning.names import (
    Callback,
    LightningModule,
    QuietCallback,
    Trainer,
    logged_step,
    rank_zero_warn,
    sharding_strategy,
)
from bnlab_callbacks.core.lightning.records import Record, Table, Taken, publish_epoch, publish_table, stamp
from bnlab_callbacks.core.lightning.scalars import EpochMeans, gather_ranks
from bnlab_callbacks.core.module_hooks import ModuleHooks
from bnlab_callbacks.core.naming import layer_filter
from bnlab_callbacks.core.overhead import Overhead
from bnlab_callbacks.core.schedule import RecordSchedule

P = ParamSpec("P")
M = TypeVar("M", bound="Monitor")

# records that are read and published together, with one copy off the device: so many, of so many seconds
TOGETHER, SECONDS = 32, 3.0


def never_break_training(method: Callable[Concatenate[M, P], None]) -> Callable[Concatenate[M, P], None]:
    """Make a hook a no-op while its monitor is off, turn an error in it into one warning, and measure its time."""

    @wraps(method)
    def guarded(self: M, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.active:
            return
        start = perf_counter()
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            self.give_up(f"{type(error).__name__}: {error}")
        self.overhead.add(perf_counter() - start)

    return cast(Callable[Concatenate[M, P], None], guarded)


class Borrower(Protocol):
    """Something that takes what a monitor recorded instead of recording it once more."""

    def borrow(self, taken: Taken) -> None:
        """Take what is kept of a step that just ended."""


class Monitor(QuietCallback):
    """A callback that records per-layer statistics of some optimizer steps.

    Records are published up to 32 at a time, when a step begins 3 seconds after the first of them or later (with
    several ranks or a budget: as soon as the next step is not recorded), at the end of each epoch, before a checkpoint,
    and when the run ends in whatever way.

    Args:
        every_n_steps: optimizer steps between two records; None for the Trainer's `log_every_n_steps`.
        layers: regular expression searched in layer names; None for all layers.
        enabled: False switches the callback off.
        budget: largest share of the training time that this callback may take (0.01 for 1 %): it then records
            less often than `every_n_steps` says, but still once per epoch; None for no limit.

    Raises:
        ValueError: `every_n_steps` below 1, `budget` not above 0, or `layers` no regular expression.
    """

    # which of Lightning's hooks need not be called in batches that leave nothing
    idle_hooks: tuple[str, ...] = ()

    def __init__(
        self,
        every_n_steps: int | None = None,
        layers: str | None = None,
        enabled: bool = True,
        budget: float | None = None,
    ) -> None:
        if budget is not None and not budget > 0:
            raise ValueError(f"budget={budget} is not above 0: give a share of the training time, 0.01 for 1 %.")
        self.schedule = RecordSchedule(every_n_steps)
        self.layers = layers
        self.enabled = enabled
        self.budget = budget
        self.active = False
        self.overhead = Overhead()
        self._can_be_idle = False
        self._idle_until = 0  # a step of this epoch
        self._filter = layer_filter(layers)
        self._hooks = ModuleHooks(Gate())
        self._means = EpochMeans()
        self._kept: list[Taken] = []
        self._borrowers: list[Borrower] = []
        self._overdue = math.inf  # when what is kept has waited long enough
        self._unpublished: list[tuple[list[Record], Table]] = []
        self._latest: dict[str, float] = {}
        self._loaded: dict[str, Any] = {}
        self._epoch = 0  # of the last record

    @property
    def latest(self) -> dict[str, float]:
        """The last record, tag → value; empty before the first."""
        self._settle()
        return self._latest

    # what a monitor of one kind adds

    def read(self, kept: Sequence[Any]) -> list[Table]:
        """Values of some recorded steps, from what `keep` was given at each, in order; its tensors are on the host."""
        raise NotImplementedError

    def change_tensors(self, taken: Any, change: Change) -> Any:
        """What `keep` was given, with each tensor that `read` needs replaced."""
        raise NotImplementedError

    def records_now(self, trainer: Trainer) -> bool:
        """Whether the step to which the batch that has just begun belongs is recorded."""
        raise NotImplementedError

    def rests_until(self, trainer: Trainer) -> int:
        """The first step of this epoch with a batch that leaves something; 0 if it is the one that begins."""
        return 0

    def epoch_values(self, trainer: Trainer) -> dict[str, float]:
        """Values that an epoch has beside the means over its records; start the next epoch."""
        return {}

    # one fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run's records; a checkpoint's are loaded after this."""
        if stage == "fit":
            self.schedule.restart()
            self._loaded = {}

    def start(self, trainer: Trainer) -> bool:
        """Begin a `fit`: whether anything is to be recorded in it."""
        sharding = sharding_strategy(trainer)
        if self.enabled and sharding:
            self.give_up(
                f"{sharding} keeps only a part of each layer on a rank, and statistics of parts would be wrong. "
                "Use the ddp strategy to see them."
            )
        self.active = self.enabled and not sharding
        self._can_be_idle = can_be_idle(trainer, self, self.idle_hooks, ("rests_until", "before_batch", "after_batch"))
        self.overhead = Overhead()
        self._means = EpochMeans(self._loaded.get("means", ()))
        self._epoch = self._loaded.get("epoch", 0)
        return self.active

    def stop(self) -> None:
        """Leave nothing behind: no hooks, buffers or references. Harmless when repeated."""
        self.active, self._idle_until = False, 0
        call_again(self, self.idle_hooks)
        self._hooks.remove()
        self._kept.clear()
        self._overdue = math.inf
        self._borrowers.clear()
        self._unpublished.clear()
        self._means = EpochMeans()

    def rest(self) -> None:
        """Cost as little as possible in batches that leave nothing."""
        self._hooks.take_off()
        if self._can_be_idle:
            pass_over(self, self.idle_hooks)

    def wake(self) -> None:
        """End that; harmless where it had not begun."""
        self._hooks.put_on()
        call_again(self, self.idle_hooks)

    def give_up(self, reason: str) -> None:
        """Say once why nothing more is recorded, and let training go on."""
        self.stop()
        rank_zero_warn(f"{type(self).__name__} is off for the rest of this run: {reason}")

    def wants(self, layer: str) -> bool:
        """Whether the layer filter lets `layer` through."""
        return self._filter.search(layer) is not None

    def keep(self, trainer: Trainer, taken: Any) -> None:
        """Note that the step that just ended left `taken`, and publish it now or with those of the next steps."""
        if not self._kept and trainer.world_size == 1:
            self._overdue = perf_counter() + SECONDS
        self._kept.append(Taken(taken, self.change_tensors, stamp(trainer, {})))
        for borrower in self._borrowers:
            borrower.borrow(self._kept[-1])
        self._epoch = trainer.current_epoch
        self.overhead.count_record()
        self._keep_to_budget(trainer)
        # ranks must find out together what failed, so not by their clocks
        waits = (trainer.world_size == 1 and self.budget is None) or self.schedule.next_step_is_due(trainer)
        unmeasured = self.budget is not None and self.overhead.records == 1
        if not waits or unmeasured or len(self._kept) >= TOGETHER:
            self.flush(trainer)

    def lend_to(self, borrower: Borrower) -> None:
        """Show `borrower` what is kept of each recorded step, until this monitor stops."""
        self._borrowers.append(borrower)

    def flush(self, trainer: Trainer) -> None:
        """Publish what was kept."""
        self._read_kept()
        tables, self._unpublished = self._unpublished, []
        for stamps, table in tables:
            publish_table(trainer, stamps, table)

    def _read_kept(self) -> None:
        kept, self._kept = self._kept, []
        self._overdue = math.inf
        if not kept:
            return
        bring_to_host(kept)
        stamps = iter([one.record for one in kept])
        for table in self.read([one.value for one in kept]):
            rows = list(islice(stamps, len(table.values)))
            if table.tags:  # not left out
                self._latest = dict(zip(table.tags, table.values[-1].tolist(), strict=True))
                self._means.add(table.tags, table.values)
                self._unpublished.append((rows, table))

    def _keep_to_budget(self, trainer: Trainer) -> None:
        if self.budget is None:
            return
        pause = self.overhead.pause(self.budget)
        if trainer.world_size > 1:  # all ranks must record the same steps
            mine = torch.tensor([pause], device=trainer.strategy.root_device)
            pause = int(gather_ranks(trainer, mine).max())
        self.schedule.wait(trainer, pause)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See anew which step is recorded next."""
        self._idle_until = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Prepare for a step."""
        if not self.active:
            return
        # not at the end of the step: who borrows may read with one copy what would take several here
        if self.overhead.begin_step() > self._overdue:
            self.publish_last(trainer)
        step = logged_step(trainer)
        if step < self._idle_until:
            return
        self._rest_or_wake(trainer, step)
        if step < self._idle_until:
            return
        if self._epoch != trainer.current_epoch and self._means:
            self._end_epoch_before(trainer)
        self.before_batch(trainer)

    @never_break_training
    def _rest_or_wake(self, trainer: Trainer, step: int) -> None:
        self._idle_until = self.rests_until(trainer) if self._can_be_idle else 0
        if step < self._idle_until:
            self.rest()
        else:
            self.wake()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take what the batch left."""
        if self.active:
            self.after_batch(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its time is no training step's."""
        self.overhead.end_step()

    @never_break_training
    def _end_epoch_before(self, trainer: Trainer) -> None:
        """Publish an epoch that a checkpoint cut off after its last batch: resumed, Lightning does not end it."""
        publish_epoch(trainer, self._means.pop() | self.epoch_values(trainer), self._epoch)

    @never_break_training
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish what is kept, the epoch's means, and what the monitors cost."""
        self.overhead.end_step()
        self.flush(trainer)
        values = self._means.pop() | self.epoch_values(trainer)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
        monitors = [callback for callback in callbacks if isinstance(callback, Monitor) and callback.active]
        if monitors and self is monitors[-1]:
            values["diagnostics/overhead_frac"] = sum(monitor.overhead.fraction for monitor in monitors)
        publish_epoch(trainer, values)

    @never_break_training
    def _settle(self) -> None:
        self._read_kept()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.publish_last(trainer)
        self.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Publish what led up to the exception, and stop: Lightning calls no other hook then."""
        self.publish_last(trainer)
        self.stop()

    @never_break_training
    def publish_last(self, trainer: Trainer) -> None:
        """Publish what is kept, whatever happens next."""
        self.flush(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop, also where `fit` never began."""
        self.stop()

    def before_batch(self, trainer: Trainer) -> None:
        """Prepare for a step."""

    def after_batch(self, trainer: Trainer) -> None:
        """Take what the batch left."""

    # checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Publish what is kept: a run that goes on from this checkpoint will not record it again."""
        self.publish_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to record what the undisturbed one would; primitives and tensors only."""
        self._settle()
        return {"schedule": self.schedule.state_dict(), "means": self._means.state_dict(), "epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._loaded = state_dict
        self.schedule.load_state_dict(state_dict["schedule"])
