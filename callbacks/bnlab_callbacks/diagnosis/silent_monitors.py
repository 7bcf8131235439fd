"""Monitors that publish nothing: what they record goes to the diagnosis alone.

They have windows, filters and schedules of their own, so that a diagnosis changes nothing of what is logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bnlab_callbacks.activation_monitor import ActivationMonitor
from bnlab_callbacks.batch_norm_monitor import BatchNormMonitor
from bnlab_callbacks.gradient_monitor import GradientMonitor
from bnlab_callbacks.gradient_parts import Part, joined_moves
from bnlab_callbacks.lightning_api import LightningModule, Trainer, logged_step
from bnlab_callbacks.monitor import Monitor
from bnlab_callbacks.records import Table, stamp
from bnlab_callbacks.schedule import RecordSchedule

Take = Callable[[int, dict[str, float]], None]


class DenseSchedule(RecordSchedule):
    """Every step at the beginning, where most runs fail, then every n steps.

    Args:
        first_steps: so many steps are all recorded.
        every_n_steps: and then one of so many.
    """

    def __init__(self, first_steps: int, every_n_steps: int) -> None:
        super().__init__(every_n_steps)
        self.first_steps = first_steps
        self._streams: dict[str, int] = {}

    def due(self, trainer: Trainer, stream: str = "") -> bool:
        """Whether the coming step is to be recorded."""
        step = logged_step(trainer)
        return self.records(step) and self._streams.get(stream) != step

    def records(self, step: int) -> bool:
        """Whether a step is recorded."""
        assert self.every_n_steps is not None
        return step < self.first_steps or step % self.every_n_steps == 0

    def next_step_is_due(self, trainer: Trainer) -> bool:
        """Always no: what is kept is fetched by the diagnosis."""
        return False

    def mark(self, trainer: Trainer, stream: str = "") -> None:
        """Several steps of one optimizer within a batch are one."""
        self._streams[stream] = logged_step(trainer)


class _Silent(Monitor):
    """What the three have in common."""

    failure: str | None = None
    take: Take

    def __init__(self, schedule: DenseSchedule, take: Take, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.schedule = schedule
        self.take = take

    def start(self, trainer: Trainer) -> bool:
        """Begin."""
        self.failure = None
        return super().start(trainer)

    def give_up(self, reason: str) -> None:
        """Remember why; the diagnosis says what was not checked."""
        self.failure = self.failure or reason
        self.stop()

    def keep(self, trainer: Trainer, taken: Any) -> None:
        """Keep the step until `flush`, however long it takes: the diagnosis fetches it."""
        self._kept.append((stamp(trainer, {}), taken))

    def flush(self, trainer: Trainer) -> None:
        """Hand over what was kept."""
        self._read_kept()
        tables, self._unpublished = self._unpublished, []
        self._means.pop()
        for stamps, table in tables:
            for record, row in zip(stamps, table.values.tolist(), strict=True):
                self.take(record.step, dict(zip(table.tags, row, strict=True)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish no epoch."""
        self.epoch_values(trainer)


class SilentGradientMonitor(_Silent, GradientMonitor):
    """`GradientMonitor`, with `weight_rms/<NN>_<layer>`, ‖w‖₂/√n, and nothing logged."""

    def _table(self, steps: list[list[Part]]) -> Table:
        table = super()._table(steps)
        parts = list(zip(*steps, strict=True))
        if not parts[0][0].moved:
            return table
        weights = [weight for same in parts for weight in same[0].weights]
        squares = torch.cat([joined_moves(same) for same in parts], 1)[..., 1]
        numel = torch.tensor([weight.numel for weight in weights], dtype=torch.float64)
        tags = tuple(f"weight_rms/{self._numbered[weight.layer]}" for weight in weights)
        return Table((*table.tags, *tags), torch.cat([table.values, (squares / numel).sqrt()], 1))


class SilentActivationMonitor(_Silent, ActivationMonitor):
    """`ActivationMonitor`, with nothing logged."""


class SilentBatchNormMonitor(_Silent, BatchNormMonitor):
    """`BatchNormMonitor`, with nothing logged."""
