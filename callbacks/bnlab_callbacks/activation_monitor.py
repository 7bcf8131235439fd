"""`ActivationMonitor`: per-layer statistics of activation functions' outputs in training steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.core.device import Change
from bnlab_callbacks.core.lightning.monitor import Monitor, never_break_training
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer, logged_step, rank_zero_warn
from bnlab_callbacks.core.lightning.records import Table
from bnlab_callbacks.core.lightning.scalars import epoch_tag, gather_ranks
from bnlab_callbacks.core.module_hooks import ModuleHooks
from bnlab_callbacks.core.naming import name_calls, number
from bnlab_callbacks.recorders.activation_hooks import Call, Hook, Recorder, find_activations
from bnlab_callbacks.recorders.activation_merge import (
    Merged,
    larger,
    layout,
    merge,
    merge_steps,
    pack_calls,
    same_layers,
    split_ranks,
    sums_of_layer,
)
from bnlab_callbacks.statistics.dead_units import DeadUnit, EpochUnits, UnitLedger

# what a rank sends in place of its layout when it has nothing to compare
_TOO_LONG, _FAILED = -1, -2


class _Step(NamedTuple):
    """What a recorded step left: its calls by name and, with several ranks, what these sent and what lies where."""

    step: int
    calls: list[tuple[str, Call]]
    ranks: tuple[Tensor, list[list[slice]]] | None

    def change_tensors(self, change: Change) -> _Step:
        """The same with other tensors: those of all ranks, or the calls' sums."""
        if self.ranks:
            return self._replace(ranks=(change(self.ranks[0]), self.ranks[1]))
        return self._replace(calls=[(key, call.change_tensors(change)) for key, call in self.calls])


class ActivationMonitor(Monitor):
    """Records, activation module by activation module, moments, saturation and dead units of the outputs in training.

    Activation modules are `nn.ReLU`, `nn.Sigmoid`, `nn.GELU` and their like (`activation_statistics.ACTIVATIONS`).
    Functional calls (`F.relu(x)`) leave no module to watch and are not seen. Only forward passes of training steps
    count, in modules in training mode: neither sanity checks nor validation, nor what activation checkpointing repeats.
    An optimizer step's statistics cover all its accumulated batches and all ranks. All values are computed in float32
    or wider.

    Logs, for each call of a module, `NN` being its place in the order of execution (the second call of a module that is
    used again is `<layer>#2`, and so on):

    - `act_mean/<NN>_<layer>`, `act_std/…`, `act_absmax/…`: mean, standard deviation, largest magnitude
    - `sat_frac/…`: share of outputs where the function's slope is below 5 % of its maximum; for functions with two
      such sides also `sat_lo/…` and `sat_hi/…` (sigmoid, tanh, softsign, hard tanh, hard sigmoid; ELU, SELU, CELU and
      softplus have the low side only, ReLU6 and log-sigmoid the high one)
    - `zero_frac/…`: share of outputs that are exactly 0 (ReLU, ReLU6)
    - `dead_frac/…`: share of units (channels for convolutions) that were not once positive over every sample and
      position of the last `dead_window` records (ReLU, ReLU6)
    - `dead_samples/…`: number of samples that those records saw

    and at the end of each epoch `<quantity>_epoch/<NN>_<layer>`: the means over its records; `act_absmax_epoch` the
    maximum; `dead_frac_epoch` and `dead_samples_epoch` over all its records (with `exact_dead` over all its steps);
    `dead_revived_epoch`, how often a unit that had counted as dead was positive again. The epoch values are in
    `trainer.callback_metrics` too, the last record in the attribute `latest`.

    Which units are dead, since which step and over how many samples, and which came back is in the attribute `ledger`,
    a list of `DeadUnit`, brought up to date at the end of each epoch; checkpoints hold what it is made of.

    Args:
        every_n_steps: optimizer steps between two records; None for the Trainer's `log_every_n_steps`. The first
            step of the run and of every epoch is always recorded.
        layers: regular expression searched in layer names, for example `act1|act_fc`; None for all layers.
        dead_window: records over which a unit must be silent to count as dead.
        exact_dead: whether to look at rectifiers' units in every step, so that `dead_frac_epoch` covers all samples.
        enabled: False switches the callback off.
        budget: largest share of the training time that this callback may take (0.01 for 1 %): it then records
            less often than `every_n_steps` says; None for no limit.

    Raises:
        ValueError: `every_n_steps` or `dead_window` below 1, `budget` not above 0, or `layers` no regular expression.
    """

    idle_hooks = ("on_before_backward", "on_after_backward", "on_train_batch_end")

    def __init__(
        self,
        every_n_steps: int | None = None,
        layers: str | None = None,
        dead_window: int = 10,
        exact_dead: bool = False,
        enabled: bool = True,
        budget: float | None = None,
    ) -> None:
        super().__init__(every_n_steps, layers, enabled, budget)
        if dead_window < 1:
            raise ValueError(f"dead_window={dead_window} is below 1: give the number of records that it spans.")
        self.dead_window = dead_window
        self.exact_dead = exact_dead
        self.ledger: list[DeadUnit] = []
        self._forget()

    def _forget(self) -> None:
        self._recorder = Recorder()
        self._hooks = ModuleHooks(self._recorder.gate)
        self._numbered: dict[str, str] = {}
        self._pending: list[tuple[str, Call]] = []
        self._ledgers: dict[str, UnitLedger] = {}
        self._every_step = EpochUnits()
        self._absmax: dict[str, float] = defaultdict(float)
        self._step_before = -1
        self._width = 0
        self._failure: str | None = None  # that all ranks know of: none may stop alone, the others would wait for it

    def stop(self) -> None:
        """Remove hooks, free buffers."""
        super().stop()
        self._open(False)
        self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook every activation module, before anything is compiled."""
        self.stop()
        self.ledger = []
        if not self.start(trainer):
            return
        found = list(find_activations(pl_module))
        if not any(self.wants(layer) for layer, _, _ in found):
            self.give_up(_nothing_to_see(self.layers, [layer for layer, _, _ in found]))
            return
        # other ranks need each step's sums at once; exact dead units need its units
        self._recorder.keep_small = trainer.world_size == 1 and not self.exact_dead
        self._resume(self._loaded, trainer.strategy.root_device)
        for layer, module, unit_dim in found:
            hook = Hook(layer, module, unit_dim, self.wants(layer), self._recorder)
            self._hooks.add(partial(module.register_forward_hook, hook))

    def _open(self, recorded: bool, every_step: bool = False) -> None:
        self._recorder.gate.open = recorded
        self._recorder.every_step.open = every_step

    def rests_until(self, trainer: Trainer) -> int:
        """When a step is recorded next, unless each step's units are watched."""
        return 0 if self._watching or self._pending else self.schedule.next_step(trainer)

    @never_break_training
    def before_batch(self, trainer: Trainer) -> None:
        """Open the hooks for a step that is due, and keep them open over its accumulated batches."""
        due = self._pending != [] or self.schedule.due(trainer)
        if due and not self._pending:
            self._step_before = trainer.global_step
        self._open(due, self.exact_dead)

    @property
    def _watching(self) -> bool:
        return self.active and (self._step_before >= 0 or self.exact_dead)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Shut the hooks: forward passes within the backward pass are checkpointing's repetitions."""
        if self._watching:
            self._open(False)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open them again: with manual optimization, more forward passes may follow in this step."""
        if self._watching:
            self._open(self._step_before >= 0, self.exact_dead)

    def after_batch(self, trainer: Trainer) -> None:
        """Name this batch's calls; when they end in an optimizer step, keep the step's statistics."""
        if self._watching:
            self._take_calls(trainer)

    @never_break_training
    def _take_calls(self, trainer: Trainer) -> None:
        recorder = self._recorder
        self._open(False)
        self.overhead.add(recorder.spent)
        recorder.spent = 0.0
        calls = list(zip(name_calls(call.layer for call in recorder.calls), recorder.calls, strict=True))
        recorder.calls = []
        if self.exact_dead:
            self._every_step.add(calls)
        if self._step_before < 0:
            return
        self._pending += calls
        if self._step_before == trainer.global_step:  # accumulating
            return
        self._step_before = -1
        self.schedule.mark(trainer)
        pending, self._pending = self._pending, []
        self._number(pending)
        measured = [(key, call) for key, call in pending if call.sums is not None]
        if trainer.world_size > 1 or measured:
            self.keep(trainer, self._exchange(trainer, measured))
        if trainer.world_size == 1 and recorder.failure:
            self._failure = recorder.failure
        self._heed_failure(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish what is kept, and the epoch's values."""
        super().on_train_epoch_end(trainer, pl_module)
        self._heed_failure(trainer)

    def _heed_failure(self, trainer: Trainer) -> None:
        if self._failure:
            self.publish_last(trainer)
            self.give_up(self._failure)

    def epoch_values(self, trainer: Trainer) -> dict[str, float]:
        """Maxima, and dead units over all records of the epoch, or over all its steps."""
        values = {epoch_tag(tag): value for tag, value in self._absmax.items()}
        self._absmax.clear()
        for name, ledger in self._ledgers.items():
            dead = ledger.pop_epoch()
            values[f"dead_frac_epoch/{name}"] = dead.fraction
            values[f"dead_samples_epoch/{name}"] = float(dead.samples)
            values[f"dead_revived_epoch/{name}"] = float(ledger.pop_revived())
        if self.exact_dead:
            for key, dead in self._every_step.pop(trainer).items():
                if key in self._numbered:
                    values[f"dead_frac_epoch/{self._numbered[key]}"] = dead.fraction
                    values[f"dead_samples_epoch/{self._numbered[key]}"] = float(dead.samples)
        self.ledger = [row for name, ledger in self._ledgers.items() for row in ledger.units(name)]
        return values

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return super().state_dict() | {
            "numbered": dict(self._numbered),
            "ledgers": {name: ledger.state_dict() for name, ledger in self._ledgers.items()},
            "every_step": self._every_step.state_dict(),
            "absmax": dict(self._absmax),
        }

    def _resume(self, state: dict[str, Any], device: torch.device) -> None:
        self._numbered = dict(state.get("numbered", {}))
        for name, ledger in state.get("ledgers", {}).items():
            self._ledgers[name] = UnitLedger(self.dead_window)
            self._ledgers[name].load_state_dict(ledger)
        self._every_step.load_state_dict(state.get("every_step", {}), device)
        self._absmax.update(state.get("absmax", {}))

    def _number(self, pending: list[tuple[str, Call]]) -> None:
        """Fix the numbers at the first record; what turns up later gets the next ones: no tag ever changes its name."""
        if not self._numbered:
            self._numbered = number(dict.fromkeys(key for key, _ in pending))
        for key, _ in pending:
            self._numbered.setdefault(key, f"{len(self._numbered):02d}_{key}")

    def _exchange(self, trainer: Trainer, calls: list[tuple[str, Call]]) -> _Step:
        """The step's calls and, with several ranks, their sums on all ranks, through one collective."""
        step = logged_step(trainer)
        if trainer.world_size == 1:
            return _Step(step, calls, None)
        vector, where = pack_calls(calls, trainer.strategy.root_device)
        if not self._width:  # agreed upon once: an exchange of vectors of different lengths would hang
            self._width = int(gather_ranks(trainer, torch.tensor([vector.numel()], device=vector.device)).max())
        message = vector.new_full((self._width + 1,), float(_TOO_LONG))
        if vector.numel() <= self._width:
            message[0] = _FAILED if self._recorder.failure else layout(calls, where)
            message[1 : vector.numel() + 1] = vector
        return _Step(step, calls, (gather_ranks(trainer, message), where))

    def change_tensors(self, taken: _Step, change: Change) -> _Step:
        """See `_Step`."""
        return taken.change_tensors(change)

    def records_now(self, trainer: Trainer) -> bool:
        """Whether the hooks have been opened for this step."""
        return self._step_before >= 0

    def read(self, kept: Sequence[_Step]) -> list[Table]:
        """Tables of the recorded steps."""
        self._recorder.kept = 0
        layers = None if kept[0].ranks else same_layers([step.calls for step in kept])
        if layers:
            return [self._table(layers, [step.step for step in kept])]
        merged = self._merge_ranks(kept) if kept[0].ranks else merge_steps([step.calls for step in kept])
        records = [dict(tags for key, sums in one.items() for tags in self._statistics(key, sums)) for one in merged]
        histories: dict[tuple[str, int], list[int]] = defaultdict(list)  # which of these steps have which rectifier
        for index, one in enumerate(merged):
            for key, sums in one.items():
                if sums.active is not None:
                    histories[key, sums.active.numel()].append(index)
        for (key, _), indices in histories.items():
            active = torch.stack([merged[index][key].active for index in indices])  # type: ignore[misc]
            samples = [int(merged[index][key].samples) for index in indices]
            steps = [kept[index].step for index in indices]
            for tag, column in self._dead_units(key, active, samples, steps).items():
                for index, value in zip(indices, column, strict=True):
                    records[index][tag] = value
        return [Table.of(record) for record in records]

    def _table(self, layers: list[list[tuple[str, Call]]], steps: list[int]) -> Table:
        """The table of K steps that ran the same small layers: the same values as of `read`, in few launches."""
        columns: dict[str, Tensor] = {}
        for calls in layers:
            key, call = calls[0]
            name = self._numbered[key]
            sums = sums_of_layer(calls)
            absmax = sums.absmax if sums.unit_max is None else sums.unit_max.amax(1).double()
            assert absmax is not None
            columns |= {f"act_mean/{name}": sums.mean, f"act_std/{name}": sums.std, f"act_absmax/{name}": absmax}
            tag = f"act_absmax/{name}"
            self._absmax[tag] = larger(self._absmax[tag], float(absmax.amax()))
            sides = {"sat_lo": sums.low, "sat_hi": sums.high}
            shares = {side: number.double() / call.numel for side, number in sides.items() if number is not None}
            if shares:
                columns[f"sat_frac/{name}"] = torch.stack(list(shares.values())).sum(0)
            if len(shares) == 2:
                columns |= {f"{side}/{name}": share for side, share in shares.items()}
            if sums.unit_max is not None and sums.nonzero is not None:
                columns[f"zero_frac/{name}"] = (call.numel - sums.nonzero).double() / call.numel
                dead = self._dead_units(key, sums.unit_max > 0, [one.samples for _, one in calls], steps)
                columns |= {tag: sums.mean.new_tensor(column) for tag, column in dead.items()}
        return Table(tuple(columns), torch.stack(list(columns.values()), 1))

    def _dead_units(self, key: str, active: Tensor, samples: list[int], steps: list[int]) -> dict[str, list[float]]:
        """Tags and their values in K records of one rectifier; `active` (K, units)."""
        name = self._numbered[key]
        shares = self._ledgers.setdefault(name, UnitLedger(self.dead_window)).add(active, samples, steps)
        return {
            f"dead_frac/{name}": [share.fraction for share in shares],
            f"dead_samples/{name}": [float(share.samples) for share in shares],
        }

    def _merge_ranks(self, kept: Sequence[_Step]) -> list[dict[str, Merged]]:
        """Statistics of each step over all ranks; none where ranks saw different layers: then no rank has any."""
        merged: list[dict[str, Merged]] = []
        gathered = torch.stack([step.ranks[0] for step in kept if step.ranks])
        for step, ranks in zip(kept, gathered, strict=True):
            assert step.ranks
            layouts, where = ranks[:, 0], step.ranks[1]
            if bool((layouts == _FAILED).any()):
                self._failure = self._recorder.failure or "it failed on another rank"
            if bool((layouts != layouts[0]).any()) or layouts[0] < 0:
                rank_zero_warn(
                    "ActivationMonitor: ranks ran different layers in a recorded step; such steps are left out."
                )
                merged.append({})
            else:
                width = where[-1][-1].stop if where else 0
                merged.append(merge(step.calls, where, split_ranks(ranks[:, 1 : width + 1])))
        return merged

    def _statistics(self, key: str, merged: Merged) -> Iterator[tuple[str, float]]:
        """Tags and values of one call's statistics, without those of dead units."""
        name, count = self._numbered[key], merged.moments.n
        yield f"act_mean/{name}", merged.moments.mean
        yield f"act_std/{name}", merged.moments.std
        tag = f"act_absmax/{name}"
        yield tag, merged.absmax
        self._absmax[tag] = larger(self._absmax[tag], merged.absmax)
        sides = {"sat_lo": merged.low, "sat_hi": merged.high}
        shares = {side: number / count for side, number in sides.items() if number is not None}
        if shares:
            yield f"sat_frac/{name}", sum(shares.values())
        if len(shares) == 2:
            yield from ((f"{side}/{name}", share) for side, share in shares.items())
        if merged.zeros is not None:
            yield f"zero_frac/{name}", merged.zeros / count


def _nothing_to_see(pattern: str | None, layers: list[str]) -> str:
    if layers:
        return f"no activation module's name matches layers={pattern!r}; there are: {', '.join(layers)}."
    return (
        "the model has no activation modules. Functional calls such as F.relu(x) cannot be seen; "
        "use modules (self.act = nn.ReLU()) to record them."
    )
