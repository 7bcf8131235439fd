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
    blocks_of,
    larger,
    merge,
    merge_steps,
    split_ranks,
)
from bnlab_callbacks.recorders.tables import Tables, everything
from bnlab_callbacks.statistics.activations import ActivationSums
from bnlab_callbacks.statistics.dead_units import DeadUnit, UnitLedger
from bnlab_callbacks.statistics.dormant_units import dormant_units

Calls = list[tuple[str, Call]]
# the sums of some layers in K steps, (K, L) or (K, L, units), and the places of their calls in each step
Block = tuple[ActivationSums, list[int]]


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
            blocks = same_blocks(calls)
            if blocks:
                return [self._table_of_blocks(calls, blocks, [step.step for step in steps])]
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
            own = dormant_units(magnitudes), magnitudes.isfinite().all(1), active
            for tag, column in self._units(name, *own, *seen).items():
                for index, value in zip(indices, column, strict=True):
                    records[index][tag] = value
        return [Table.of(record) for record in records]

    def _table_of_blocks(self, steps: list[Calls], blocks: list[Block], numbers: list[int]) -> Table:
        """The table of K steps that ran the same small layers: the same values as of `_tables`, in few launches.

        Args:
            steps: their calls, of the same names in the same order.
            blocks: as `same_blocks` gives them.
            numbers: of the steps.
        """
        tags: dict[int, list[str]] = {}  # by place among the calls
        columns: dict[int, list[Tensor]] = {}  # (K, tags of the layer)
        for sums, places in blocks:
            names = [self.numbered[steps[0][place][0]] for place in places]
            counts = sums.mean.new_tensor([[step[place][1].numel for place in places] for step in steps])
            found = _quantities(sums, counts)
            ranks = [[step[place][1].rank for step in steps] for place in places]
            if ranks[0][0] is not None:
                found["act_effective_rank"] = torch.stack([torch.stack(each).double() for each in ranks], 1)  # type: ignore[arg-type]
            for name, largest in zip(names, found["act_absmax"].amax(0).tolist(), strict=True):
                self._note_absmax(name, largest)
            values = torch.stack(list(found.values()), 2).unbind(1)
            for place, name, columns_of_layer in zip(places, names, values, strict=True):
                tags[place] = [f"{quantity}/{name}" for quantity in found]
                columns[place] = [columns_of_layer]
            if sums.unit_abs is not None:
                self._add_units(steps, sums, places, numbers, tags, columns)
        order = sorted(tags)
        return Table(
            tuple(tag for place in order for tag in tags[place]),
            torch.cat([column for place in order for column in columns[place]], 1),
        )

    def _add_units(
        self,
        steps: list[Calls],
        sums: ActivationSums,
        places: list[int],
        numbers: list[int],
        tags: dict[int, list[str]],
        columns: dict[int, list[Tensor]],
    ) -> None:
        """Add the quantities of a block's units."""
        assert sums.unit_abs is not None
        dormant = dormant_units(sums.unit_abs).unbind(1)
        finite = sums.unit_abs.isfinite().all(2).unbind(1)
        active = [None] * len(places) if sums.unit_max is None else list((sums.unit_max > 0).unbind(1))
        for row, place in enumerate(places):
            samples = [step[place][1].samples for step in steps]
            own = dormant[row], finite[row], active[row]
            found = self._units(steps[0][place][0], *own, samples, numbers)
            tags[place] += found
            columns[place].append(torch.tensor(list(found.values()), dtype=torch.float64).T)

    def _note_absmax(self, name: str, value: float) -> None:
        tag = f"act_absmax/{name}"
        self._absmax[tag] = larger(self._absmax[tag], value)

    def _units(
        self,
        key: str,
        dormant: Tensor,
        finite: Tensor,
        active: Tensor | None,
        samples: list[int],
        steps: list[int],
    ) -> dict[str, list[float]]:
        """Tags and their values in K records of one layer.

        Args:
            key: the layer.
            dormant: (K, units).
            finite: (K,), whether all units' magnitudes are.
            active: (K, units), of a rectifier.
            samples: of each record.
            steps: of each record.
        """
        name = self.numbered[key]
        if self.list_dormant:
            self._dormant.setdefault(name, UnitLedger(self.dead_window)).add(~dormant, samples, steps)
        shares = dormant.double().mean(1).where(finite, math.nan)
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


def same_blocks(steps: list[Calls]) -> list[Block] | None:
    """The blocks of K steps, where each ran the same small layers, each once; else None."""
    names = [[name for name, _ in calls] for calls in steps]
    found = [blocks_of(calls) for calls in steps]
    if any(each != names[0] for each in names) or any(
        blocks is None or len(blocks) != len(found[0] or ()) for blocks in found
    ):
        return None
    same = []
    for blocks in zip(*found, strict=True):
        sums, _, places = blocks[0]
        if any(_layout(*other) != _layout(*blocks[0]) for other in blocks):
            return None
        fields: list[Any] = [
            None if field is None else torch.stack([other[index][other_rows] for other, other_rows, _ in blocks])
            for index, field in enumerate(sums)
        ]
        same.append((ActivationSums(*fields), places))
    return same


def _layout(sums: ActivationSums, rows: list[int], places: list[int]) -> tuple[Any, ...]:
    return [None if field is None else field.shape[1:] for field in sums], places


def _quantities(sums: ActivationSums, counts: Tensor) -> dict[str, Tensor]:
    """All of one block but those of units, (K, L) each."""
    absmax = sums.absmax if sums.unit_max is None else sums.unit_max.amax(2).double()
    assert absmax is not None
    found = {"act_mean": sums.mean, "act_std": sums.std, "act_absmax": absmax}
    found["act_outlier"] = absmax / torch.hypot(sums.mean, sums.std)
    found["act_kurtosis"] = sums.kurtosis.where(sums.kurtosis != 0, math.nan)
    sides = {"sat_lo": sums.low, "sat_hi": sums.high}
    shares = {side: number / counts for side, number in sides.items() if number is not None}
    if shares:
        found["sat_frac"] = torch.stack(list(shares.values())).sum(0)
    if len(shares) == 2:
        found |= shares
    if sums.unit_max is not None and sums.nonzero is not None:
        found["zero_frac"] = (counts - sums.nonzero) / counts
    return found
