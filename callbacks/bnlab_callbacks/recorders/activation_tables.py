"""Tables of activation statistics, from what the recorder left of some steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bnlab_callbacks.core.ranks import agreement
from bnlab_callbacks.core.records import Table, epoch_tag
from bnlab_callbacks.recorders.activation_calls import (
    ActivationStep,
    Call,
    Merged,
    larger,
    merge,
    merge_steps,
    same_layers,
    split_ranks,
    sums_of_layer,
)
from bnlab_callbacks.recorders.tables import Tables, everything
from bnlab_callbacks.statistics.dead_units import DeadUnit, UnitLedger

Calls = list[tuple[str, Call]]


class ActivationTables(Tables):
    """Turns what `ActivationRecorder` left into tables, and keeps the history of rectifiers' units.

    Args:
        wants: which layers are to be in the tables.
        dead_window: records over which a unit must be silent to count as dead.
    """

    def __init__(self, wants: Callable[[str], bool] = everything, dead_window: int = 10) -> None:
        super().__init__(wants)
        self.dead_window = dead_window
        self._ledgers: dict[str, UnitLedger] = {}
        self._absmax: dict[str, float] = defaultdict(float)

    def read(self, steps: Sequence[ActivationStep]) -> list[Table]:
        """Tables of K recorded steps, whose tensors are on the host."""
        for step in steps:
            self.number(step.names)
        if steps[0].ranks:
            wanted = {name for step in steps for name, call in step.calls if self.wants(call.layer)}
            merged = [{name: sums for name, sums in one.items() if name in wanted} for one in self._merge_ranks(steps)]
        else:
            calls = [[(name, call) for name, call in step.calls if self.wants(call.layer)] for step in steps]
            layers = same_layers(calls)
            if layers:
                return [self._table_of_same_layers(layers, [step.step for step in steps])]
            merged = merge_steps(calls)
        return self._tables(merged, [step.step for step in steps])

    def _tables(self, merged: list[dict[str, Merged]], steps: list[int]) -> list[Table]:
        """A table for each of K steps."""
        records = [dict(tags for name, sums in one.items() for tags in self._statistics(name, sums)) for one in merged]
        histories: dict[tuple[str, int], list[int]] = defaultdict(list)  # which of these steps have which rectifier
        for index, one in enumerate(merged):
            for name, sums in one.items():
                if sums.active is not None:
                    histories[name, sums.active.numel()].append(index)
        for (name, _), indices in histories.items():
            active = torch.stack([merged[index][name].active for index in indices])  # type: ignore[misc]
            samples = [int(merged[index][name].samples) for index in indices]
            for tag, column in self._dead_units(name, active, samples, [steps[index] for index in indices]).items():
                for index, value in zip(indices, column, strict=True):
                    records[index][tag] = value
        return [Table.of(record) for record in records]

    def _table_of_same_layers(self, layers: list[Calls], steps: list[int]) -> Table:
        """The table of K steps that ran the same small layers: the same values as of `_tables`, in few launches."""
        columns: dict[str, Tensor] = {}
        for calls in layers:
            key, call = calls[0]
            name = self.numbered[key]
            sums = sums_of_layer(calls)
            absmax = sums.absmax if sums.unit_max is None else sums.unit_max.amax(1).double()
            assert absmax is not None
            columns |= {f"act_mean/{name}": sums.mean, f"act_std/{name}": sums.std, f"act_absmax/{name}": absmax}
            self._note_absmax(name, float(absmax.amax()))
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

    def _note_absmax(self, name: str, value: float) -> None:
        tag = f"act_absmax/{name}"
        self._absmax[tag] = larger(self._absmax[tag], value)

    def _dead_units(self, key: str, active: Tensor, samples: list[int], steps: list[int]) -> dict[str, list[float]]:
        """Tags and their values in K records of one rectifier; `active` (K, units)."""
        name = self.numbered[key]
        shares = self._ledgers.setdefault(name, UnitLedger(self.dead_window)).add(active, samples, steps)
        return {
            f"dead_frac/{name}": [share.fraction for share in shares],
            f"dead_samples/{name}": [float(share.samples) for share in shares],
        }

    def _merge_ranks(self, steps: Sequence[ActivationStep]) -> list[dict[str, Merged]]:
        """Sums of each step over all ranks; none where ranks saw different layers: then no rank has any."""
        merged: list[dict[str, Merged]] = []
        gathered = torch.stack([step.ranks[0] for step in steps if step.ranks])
        for step, ranks in zip(steps, gathered, strict=True):
            assert step.ranks
            where = step.ranks[1]
            found = agreement(ranks[:, 0].tolist())
            self.note(found)
            width = where[-1][-1].stop if where else 0
            split = split_ranks(ranks[:, 1 : width + 1])
            merged.append(merge(step.calls, where, split) if found == "agreed" else {})
        return merged

    def _statistics(self, key: str, merged: Merged) -> Iterator[tuple[str, float]]:
        """Tags and values of one call's statistics, without those of dead units."""
        name, count = self.numbered[key], merged.moments.n
        yield f"act_mean/{name}", merged.moments.mean
        yield f"act_std/{name}", merged.moments.std
        yield f"act_absmax/{name}", merged.absmax
        self._note_absmax(name, merged.absmax)
        sides = {"sat_lo": merged.low, "sat_hi": merged.high}
        shares = {side: number / count for side, number in sides.items() if number is not None}
        if shares:
            yield f"sat_frac/{name}", sum(shares.values())
        if len(shares) == 2:
            yield from ((f"{side}/{name}", share) for side, share in shares.items())
        if merged.zeros is not None:
            yield f"zero_frac/{name}", merged.zeros / count

    def pop_epoch(self) -> dict[str, float]:
        """Maxima, and dead units over all records of the epoch, by tag; start the next epoch."""
        values = {epoch_tag(tag): value for tag, value in self._absmax.items()}
        self._absmax.clear()
        for name, ledger in self._ledgers.items():
            dead = ledger.pop_epoch()
            values[f"dead_frac_epoch/{name}"] = dead.fraction
            values[f"dead_samples_epoch/{name}"] = float(dead.samples)
            values[f"dead_revived_epoch/{name}"] = float(ledger.pop_revived())
        return values

    def dead_units(self) -> list[DeadUnit]:
        """Every unit that is dead now, or was and came back."""
        return [row for name, ledger in self._ledgers.items() for row in ledger.units(name)]

    def state_dict(self) -> dict[str, Any]:
        """Numbers, lists and tensors."""
        return {
            "numbered": dict(self.numbered),
            "ledgers": {name: ledger.state_dict() for name, ledger in self._ledgers.items()},
            "absmax": dict(self._absmax),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self.numbered = dict(state.get("numbered", {}))
        for name, ledger in state.get("ledgers", {}).items():
            self._ledgers[name] = UnitLedger(self.dead_window)
            self._ledgers[name].load_state_dict(ledger)
        self._absmax.update(state.get("absmax", {}))
