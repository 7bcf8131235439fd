"""The publisher of a run: what all monitors recorded in a step goes to the loggers together."""

import math
import time
from collections.abc import Iterable, Sequence
from itertools import chain
from time import perf_counter
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from bnlab_callbacks.core.lightning.names import Trainer, rank_zero_warn
from bnlab_callbacks.core.lightning.tensorboard import takes_summaries, write_summary
from bnlab_callbacks.core.lightning.trainer import last_step, logged_step, ranks_of
from bnlab_callbacks.core.overhead import Overhead
from bnlab_callbacks.core.records import Moment, Record, Taken
from bnlab_callbacks.core.shared import SharedRecorders

# records that are read and published together, with one copy off the device: so many, of so many seconds
TOGETHER, SECONDS = 32, 3.0


class Publishing(Protocol):
    """A monitor: somebody who leaves records to be published.

    Attributes:
        prompt: whether its records cannot wait: ranks must act together, or a budget counts the time that they take.
        unmeasured: whether nothing is known yet of the time that reading them takes, and a budget counts it.
        overhead: where the time that publishing takes is noted.
    """

    overhead: Overhead

    @property
    def prompt(self) -> bool: ...

    @property
    def unmeasured(self) -> bool: ...

    def records_in(self, moment: Moment) -> bool:
        """Whether it records the step of this moment."""

    def read_records(self, taken: Sequence[Taken], into: list[Record]) -> None:
        """Add the records of some steps, in order; no exception leaves it."""


class Listener(Protocol):
    """Somebody who is given every record of the run, on rank 0, after the loggers have it."""

    def on_record(self, trainer: Trainer, record: Record) -> None:
        """Take in one record."""


class Publisher:
    """Gathers what the monitors of a Trainer leave, and gives it to its loggers and listeners, step by step.

    Records wait up to 3 seconds, 32 of a monitor at most, for one copy off the device; where ranks must find out
    together what failed, or a budget counts the time, only until a step begins that is not recorded.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.recorders = SharedRecorders(ranks_of(trainer))
        self.monitors: list[Any] = []
        self.listeners: list[Listener] = []
        self._kept: dict[Any, list[Taken]] = {}
        self._overdue = math.inf  # when what is kept has waited long enough
        self._prompt = False  # whether any monitor is
        self._failed_loggers: set[int] = set()
        self.recorders.wait_with(self._waiting)

    def _waiting(self) -> Iterable[Taken]:
        return chain.from_iterable(self._kept.values())

    def join(self, monitor: Publishing) -> None:
        """Publish for one more monitor."""
        if not self.monitors:
            self._failed_loggers.clear()
        self.monitors.append(monitor)
        self._prompt = any(each.prompt for each in self.monitors)

    def leave(self, monitor: Publishing) -> None:
        """Forget a monitor, and what it has left; harmless when repeated."""
        self._kept.pop(monitor, None)
        if monitor in self.monitors:
            self.monitors.remove(monitor)
            self._prompt = any(each.prompt for each in self.monitors)

    def keep(self, monitor: Publishing, taken: Taken) -> None:
        """Publish a record sooner or later."""
        if not self._kept:
            self._overdue = perf_counter() + SECONDS
        kept = self._kept.setdefault(monitor, [])
        kept.append(taken)
        if len(kept) >= TOGETHER:
            self._overdue = -math.inf

    def publish_if_due(self, trainer: Trainer, moment: Moment) -> None:
        """Publish what has waited long enough, when a batch begins; on all ranks in the same batches."""
        if not self._kept:
            return
        if self._prompt and self._overdue > 0:
            waits = any(monitor.records_in(moment) for monitor in self.monitors)
            waits = waits and not any(monitor.unmeasured for monitor in self._kept)
        else:
            waits = perf_counter() <= self._overdue
        if not waits:
            self.publish_kept(trainer)

    def publish_kept(self, trainer: Trainer) -> None:
        """Publish everything that waits."""
        kept = list(self._kept)
        records = self.read_kept()
        start = perf_counter()
        for record in records:
            self.publish(trainer, record)
        for monitor in kept:
            monitor.overhead.add((perf_counter() - start) / len(kept))

    def read_kept(self) -> list[Record]:
        """The records of all that waits, one a step, in order."""
        if not self._kept:
            return []
        start = perf_counter()
        self.recorders.bring_to_host()
        kept, self._kept = self._kept, {}
        for monitor in kept:
            monitor.overhead.add((perf_counter() - start) / len(kept))
        found: list[Record] = []
        for monitor, taken in kept.items():
            with monitor.overhead.measure():
                monitor.read_records(taken, found)
        return one_record_a_step(found)

    def publish(self, trainer: Trainer, record: Record) -> None:
        """Give a record to every logger and listener; ranks other than 0 write nothing."""
        if not trainer.is_global_zero or not record.values:
            return
        for logger in trainer.loggers:
            if id(logger) not in self._failed_loggers:
                self._log(logger, record)
        for listener in self.listeners:
            listener.on_record(trainer, record)

    def _log(self, logger: Any, record: Record) -> None:
        try:
            if takes_summaries(logger):
                write_summary(logger, record.values, record.step, record.wall_time)
            else:
                logger.log_metrics(dict(record.values), step=record.step)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a logger, training goes on
            self._failed_loggers.add(id(logger))
            rank_zero_warn(
                f"{type(logger).__name__} gets no more diagnostics in this run: {type(error).__name__}: {error}"
            )


def one_record_a_step(records: Iterable[Record]) -> list[Record]:
    """One record for each step, with the values of all its records; by step."""
    merged: dict[int, Record] = {}
    for record in records:
        known = merged.get(record.step)
        merged[record.step] = record if known is None else known._replace(values=known.values | record.values)
    return [merged[step] for step in sorted(merged)]


_PUBLISHERS: WeakKeyDictionary[Trainer, Publisher] = WeakKeyDictionary()


def publisher_of(trainer: Trainer) -> Publisher:
    """The Trainer's publisher, which all its callbacks share."""
    if trainer not in _PUBLISHERS:
        _PUBLISHERS[trainer] = Publisher(trainer)
    return _PUBLISHERS[trainer]


def publish_kept(trainer: Trainer) -> None:
    """Publish the records that the Trainer's monitors still keep, as before a checkpoint.

    Args:
        trainer: the Trainer, within `fit`; all ranks must call it.
    """
    publisher_of(trainer).publish_kept(trainer)


def publish_values(trainer: Trainer, values: dict[str, float]) -> None:
    """Log values of one's own as the monitors log theirs: at the present step, to every logger and `RecordFile`.

    Args:
        trainer: the Trainer, within `fit`; ranks other than 0 write nothing.
        values: tag → value.
    """
    publisher_of(trainer).publish(trainer, stamp(trainer, values))


def publish_epoch(trainer: Trainer, values: dict[str, float], epoch: int | None = None) -> None:
    """Publish an epoch's values at its last step, and put them where EarlyStopping and others look.

    `epoch` is the present one where it is None.
    """
    if not values:
        return
    record = stamp(trainer, values)._replace(step=last_step(trainer))
    publisher_of(trainer).publish(trainer, record if epoch is None else record._replace(epoch=epoch))
    trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in values.items()})


def stamp(trainer: Trainer, values: dict[str, float]) -> Record:
    """A record of `values` as of now."""
    return Record(logged_step(trainer), trainer.current_epoch, time.time(), values)
