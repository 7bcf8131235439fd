"""Tables of activation statistics, from what the recorder left of some steps."""

import math
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
from bnlab_callbacks.statistics.dormant_units import dormant_units

Calls = list[tuple[str, Call]]


class ActivationTables(Tables):
    """Turns what `ActivationRecorder` left into tables, and keeps the history of layers' units.

    Args:
        wants: which layers are to be in the tables.
        dead_window: records over which a unit must be silent to count as dead, or dormant to be listed.
        list_dormant: whether `dead_units` is to list dormant units too.
    """

    def __init__(
        self, wants: Callable[[str], bool] = everything, dead_window: int = 10, list_dormant: bool = False
    ) -> None:
        super().__init__(wants)
        self.list_dormant = list_dormant
        self.dead_window = dead_window
        self._ledgers: dict[str, UnitLedger] = {}  # of rectifiers' units: silent or not
        self._dormant: dict[str, UnitLedger] = {}  # of all layers' units: dormant or not
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
        histories: dict[tuple[str, int], list[int]] = defaultdict(list)  # which of these steps have which units
        for index, one in enumerate(merged):
            for name, sums in one.items():
                if sums.magnitudes is not None:
                    histories[name, sums.magnitudes.numel()].append(index)
        for (name, _), indices in histories.items():
            layer = [merged[index][name] for index in indices]
            magnitudes = torch.stack([sums.magnitudes for sums in layer])  # type: ignore[misc]
            active = None if layer[0].active is None else torch.stack([sums.active for sums in layer])  # type: ignore[misc]
            seen = [int(sums.samples) for sums in layer], [steps[index] for index in indices]
            for tag, column in self._units(name, magnitudes, active, *seen).items():
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
            columns[f"act_outlier/{name}"] = absmax / torch.hypot(sums.mean, sums.std)
            columns[f"act_kurtosis/{name}"] = sums.kurtosis.where(sums.kurtosis != 0, math.nan)
            ranks = [one.rank for _, one in calls if one.rank is not None]
            if ranks:
                columns[f"act_effective_rank/{name}"] = torch.stack(ranks).double()
            self._note_absmax(name, float(absmax.amax()))
            sides = {"sat_lo": sums.low, "sat_hi": sums.high}
            shares = {side: number.double() / call.numel for side, number in sides.items() if number is not None}
            if shares:
                columns[f"sat_frac/{name}"] = torch.stack(list(shares.values())).sum(0)
            if len(shares) == 2:
                columns |= {f"{side}/{name}": share for side, share in shares.items()}
            if sums.unit_max is not None and sums.nonzero is not None:
                columns[f"zero_frac/{name}"] = (call.numel - sums.nonzero).double() / call.numel
            if sums.unit_abs is not None:
                active = None if sums.unit_max is None else sums.unit_max > 0
                units = self._units(key, sums.unit_abs, active, [one.samples for _, one in calls], steps)
                columns |= {tag: sums.mean.new_tensor(column) for tag, column in units.items()}
        return Table(tuple(columns), torch.stack(list(columns.values()), 1))

    def _note_absmax(self, name: str, value: float) -> None:
        tag = f"act_absmax/{name}"
        self._absmax[tag] = larger(self._absmax[tag], value)

    def _units(
        self, key: str, magnitudes: Tensor, active: Tensor | None, samples: list[int], steps: list[int]
    ) -> dict[str, list[float]]:
        """Tags and their values in K records of one layer; `magnitudes` and, of a rectifier, `active` (K, units)."""
        name = self.numbered[key]
        dormant = dormant_units(magnitudes)
        if self.list_dormant:
            self._dormant.setdefault(name, UnitLedger(self.dead_window)).add(~dormant, samples, steps)
        shares = dormant.double().mean(1).where(magnitudes.isfinite().all(1), math.nan)
        found = {f"dormant_frac/{name}": shares.tolist()}
        if active is not None:
            dead = self._ledgers.setdefault(name, UnitLedger(self.dead_window)).add(active, samples, steps)
            found[f"dead_frac/{name}"] = [share.fraction for share in dead]
            found[f"dead_samples/{name}"] = [float(share.samples) for share in dead]
        return found

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
        """Tags and values of one call's statistics, without those of units."""
        name, count = self.numbered[key], merged.moments.n
        yield f"act_mean/{name}", merged.moments.mean
        yield f"act_std/{name}", merged.moments.std
        yield f"act_absmax/{name}", merged.absmax
        yield f"act_outlier/{name}", merged.outlier
        yield f"act_kurtosis/{name}", merged.moments.kurtosis
        if merged.ranks:
            yield f"act_effective_rank/{name}", sum(merged.ranks) / len(merged.ranks)
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
        """Every unit that is dead or dormant now, or was and came back; one that is both is listed as dead."""
        found: list[DeadUnit] = []
        for name in self._ledgers | self._dormant:
            dormant = self._dormant[name].units(name) if name in self._dormant else []
            rows = {row.unit: row._replace(dead=False, dormant=row.dead) for row in dormant}
            for row in self._ledgers[name].units(name) if name in self._ledgers else []:
                if row.dead or not (row.unit in rows and rows[row.unit].dormant):
                    rows[row.unit] = row
            found += [rows[unit] for unit in sorted(rows)]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Numbers, lists and tensors."""
        return {
            "numbered": dict(self.numbered),
            "ledgers": {name: ledger.state_dict() for name, ledger in self._ledgers.items()},
            "dormant": {name: ledger.state_dict() for name, ledger in self._dormant.items()},
            "absmax": dict(self._absmax),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self.numbered = dict(state.get("numbered", {}))
        for kept, ledgers in ((self._ledgers, "ledgers"), (self._dormant, "dormant")):
            for name, ledger in state.get(ledgers, {}).items():
                kept[name] = UnitLedger(self.dead_window)
                kept[name].load_state_dict(ledger)
        self._absmax.update(state.get("absmax", {}))
