"""Monitors that publish nothing: what they record goes to the diagnosis alone.

They have windows, filters and schedules of their own, so that a diagnosis changes nothing of what is logged. Where a
monitor of the user's records a step with all its layers, they take what it left instead of recording it once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bnlab_callbacks.activation_monitor import ActivationMonitor
from bnlab_callbacks.batch_norm_monitor import BatchNormMonitor
from bnlab_callbacks.core.lightning.monitor import Monitor
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer, logged_step
from bnlab_callbacks.core.lightning.records import Table, Taken, stamp
from bnlab_callbacks.diagnosis.watching.look_schedule import LookSchedule
from bnlab_callbacks.gradient_monitor import GradientMonitor
from bnlab_callbacks.recorders.gradient_parts import Part, joined_moves

Take = Callable[[int, dict[str, float]], None]


class _Silent(Monitor):
    """What the three have in common."""

    kind: type[Monitor]
    failure: str | None = None
    schedule: LookSchedule

    def __init__(self, schedule: LookSchedule, take: Take, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.schedule = schedule
        self.take = take
        self._meet_nobody()

    def _meet_nobody(self) -> None:
        self._lender: Monitor | None = None
        self._chosen_for = -1
        self.schedule.borrowed = False

    def start(self, trainer: Trainer) -> bool:
        """Begin."""
        self.failure = None
        self._meet_nobody()
        return super().start(trainer)

    def find_lender(self, monitors: Sequence[Monitor], trainer: Trainer) -> None:
        """Remember which of `monitors`, whose hooks are called before this one's, records all that this one does."""
        alike = [one for one in monitors if type(one) is self.kind and one.active]  # Lightning allows one of a kind
        self._lender = next((one for one in alike if self.can_borrow(one, trainer)), None)
        if self._lender is not None:
            self._lender.lend_to(self)

    def can_borrow(self, monitor: Any, trainer: Trainer) -> bool:
        """Whether a monitor of the same kind records at least what this one does, in the steps that it records."""
        return monitor.layers is None

    def choose(self, trainer: Trainer) -> None:
        """Find out, for a step that has just begun, whether it is lent; once for all its batches."""
        if self._chosen_for == logged_step(trainer):
            return
        self._chosen_for = logged_step(trainer)
        self.schedule.borrowed = self._lender is not None and self._lender.active and self._lender.records_now(trainer)

    def borrow(self, taken: Taken) -> None:
        """Take what the lender keeps of a step, if it was chosen for that."""
        if self.active and self.schedule.borrowed and taken.record.step == self._chosen_for:
            self._kept.append(taken)

    def give_up(self, reason: str) -> None:
        """Remember why; the diagnosis says what was not checked."""
        self.failure = self.failure or reason
        self.stop()

    def keep(self, trainer: Trainer, taken: Any) -> None:
        """Keep the step until `flush`, however long it takes: the diagnosis fetches it."""
        self._kept.append(Taken(taken, self.change_tensors, stamp(trainer, {})))

    @property
    def waiting(self) -> Sequence[Taken]:
        """What was kept since the last `flush`."""
        return self._kept

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

    kind = GradientMonitor

    def can_borrow(self, monitor: Any, trainer: Trainer) -> bool:
        """With its updates; and one optimizer, as another one's layers may be recorded at another step."""
        one = trainer.lightning_module.automatic_optimization and len(trainer.optimizers) == 1
        return super().can_borrow(monitor, trainer) and monitor.update_ratio and one

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

    kind = ActivationMonitor

    def read(self, kept: Sequence[Any]) -> list[Table]:
        """Tables of steps, also of borrowed ones, whose layers may be new here."""
        for step in kept:
            self._number(step.calls)
        return super().read(kept)


class SilentBatchNormMonitor(_Silent, BatchNormMonitor):
    """`BatchNormMonitor`, with nothing logged."""

    kind = BatchNormMonitor

    def can_borrow(self, monitor: Any, trainer: Trainer) -> bool:
        """Without smoothness, which is read from the same records."""
        return super().can_borrow(monitor, trainer) and monitor.smoothness_every_n_steps is None
