"""Records: the values of one optimizer step or of one epoch, and where they go."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.core.device import DeviceValues
from bnlab_callbacks.core.lightning.names import Callback, QuietCallback, Trainer, logged_step
from bnlab_callbacks.core.lightning.scalars import log_scalars, log_table


class Record(NamedTuple):
    """What was recorded at one moment."""

    step: int  # on the axis that `self.log` uses
    epoch: int
    wall_time: float  # seconds since 1970
    values: dict[str, float]  # tag (`<quantity>/<NN>_<layer>`, or without a layer `<quantity>`) to value


@dataclass(eq=False)
class Taken(DeviceValues):
    """What one recorded step left, until it is read; several monitors may hold the same.

    Attributes:
        record: when that was; without values.
    """

    record: Record


class Table(NamedTuple):
    """The values of K recorded steps with the same tags; an empty one stands for steps that are left out."""

    tags: tuple[str, ...]
    values: Tensor  # (K, tags), float64, on the host

    @classmethod
    def of(cls, values: dict[str, float]) -> Table:
        """The table of one step."""
        return cls(tuple(values), torch.tensor([list(values.values())], dtype=torch.float64))


class RecordListener(QuietCallback):
    """A callback that is given every record of the run, on rank 0, after the loggers have it."""

    def on_record(self, trainer: Trainer, record: Record) -> None:
        """Take in one record."""
        raise NotImplementedError


def stamp(trainer: Trainer, values: dict[str, float], step: int | None = None) -> Record:
    """A record of `values` as of now; `step` is the present one where it is None."""
    return Record(logged_step(trainer) if step is None else step, trainer.current_epoch, time.time(), values)


def publish(trainer: Trainer, records: Sequence[Record]) -> None:
    """Give records to every logger and every `RecordListener` of the Trainer; ranks other than 0 write nothing."""
    if trainer.is_global_zero:
        for record in records:
            log_scalars(trainer, record.values, record.step, record.wall_time)
        for listener in _listeners(trainer):
            for record in records:
                listener.on_record(trainer, record)


def publish_values(trainer: Trainer, values: dict[str, float]) -> None:
    """Log values of one's own as the monitors log theirs: at the present step, to every logger and `RecordFile`.

    Args:
        trainer: the Trainer, within `fit`; ranks other than 0 write nothing.
        values: tag → value.
    """
    publish(trainer, [stamp(trainer, values)])


def publish_table(trainer: Trainer, stamps: Sequence[Record], table: Table) -> None:
    """The same for a table; `stamps` (K) tell when its rows were recorded."""
    if not trainer.is_global_zero or not table.tags:
        return
    log_table(trainer, table.tags, table.values, [(stamp.step, stamp.wall_time) for stamp in stamps])
    listeners = _listeners(trainer)
    for stamp, row in zip(stamps, table.values.tolist() if listeners else (), strict=bool(listeners)):
        record = stamp._replace(values=dict(zip(table.tags, row, strict=True)))
        for listener in listeners:
            listener.on_record(trainer, record)


def _listeners(trainer: Trainer) -> list[RecordListener]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    return [callback for callback in callbacks if isinstance(callback, RecordListener)]


def publish_epoch(trainer: Trainer, values: dict[str, float], epoch: int | None = None) -> None:
    """Publish an epoch's values at its last step, and put them where EarlyStopping and others look.

    `epoch` is the present one where it is None.
    """
    if not values:
        return
    record = stamp(trainer, values, logged_step(trainer) - 1)
    publish(trainer, [record if epoch is None else record._replace(epoch=epoch)])
    trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in values.items()})
