"""Silent units of rectifiers: over a window of records, over an epoch, since when, and those that came back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.core.device import pack
from bnlab_callbacks.core.ranks import Ranks, check_sum

if TYPE_CHECKING:
    import numpy

    Numbers = numpy.ndarray[Any, Any]


class DeadShare(NamedTuple):
    """Share of units that were not once positive, and over how many samples that was seen."""

    fraction: float
    samples: int


class DeadUnit(NamedTuple):
    """A unit that counts as dead now: silent over a whole window of records; or one that did and came back."""

    layer: str  # `<NN>_<layer>`
    unit: int
    dead: bool  # now
    since: int  # step of the first record of its present silence; of its return, if it is not dead
    samples: int  # that it has been silent over, or active again
    revivals: int  # times that it fired after having counted as dead


class UnitLedger:
    """The history of one layer's units, record by record.

    Args:
        length: records that the sliding window spans.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._start(0)

    def _start(self, units: int) -> None:
        import numpy

        self._records = 0  # so far
        self._seen = 0  # samples in them
        self._samples: deque[int] = deque(maxlen=self.length)  # of each record in the window
        self._epoch_start = 0  # record
        self._epoch_samples = 0
        self._epoch_revivals = 0
        # for each unit; NumPy, whose calls on so few numbers take a tenth of torch's
        zeros, never = numpy.zeros(units, dtype=numpy.int64), numpy.full(units, -1, dtype=numpy.int64)
        self._last_active: Numbers = zeros.copy()  # number of the record, from 1; 0 for none
        self._seen_then: Numbers = zeros.copy()  # samples up to that record
        self._since: Numbers = never.copy()  # step of its first silent record since; -1 while it is active
        self._revivals: Numbers = zeros.copy()
        self._returned: Numbers = never.copy()  # step of the last revival
        self._seen_at_return: Numbers = zeros.copy()

    def add(self, active: Tensor, samples: Sequence[int], steps: Sequence[int]) -> list[DeadShare]:
        """Take in K records.

        Args:
            active: (K, units), whether the unit was positive in any sample of the record.
            samples: (K), samples of each record.
            steps: (K), the step of each record.

        Returns:
            after each of them, the units dead over the last `length` records, or over as many as there are.
        """
        import numpy

        fired = active.numpy()
        count, units = fired.shape
        if units != len(self._last_active):  # a layer of another size took the name: start anew
            self._start(units)
        numbers = numpy.arange(self._records + 1, self._records + count + 1)
        seen = numpy.cumsum([self._seen, *samples])
        last = numpy.empty((count + 1, units), dtype=numpy.int64)  # before and after each record
        last[0] = self._last_active
        numpy.multiply(fired, numbers[:, None], out=last[1:])
        numpy.maximum.accumulate(last, out=last)
        dead = (last[1:] <= (numbers - self.length).clip(0)[:, None]).sum(1).tolist()
        back = fired & (numbers[:, None] - 1 - last[:-1] >= self.length)
        if back.any():
            self._note_returns(back, numpy.asarray(steps), seen)
        self._note_silence(last[-1].copy(), numpy.asarray([*steps, -1]), seen)
        self._records += count
        self._seen = int(seen[-1])
        self._epoch_samples += sum(samples)
        shares = []
        for number, silent in zip(samples, dead, strict=True):
            self._samples.append(number)
            shares.append(DeadShare(silent / max(units, 1), sum(self._samples)))
        return shares

    def _note_returns(self, back: Numbers, steps: Numbers, seen: Numbers) -> None:
        """`back` (K, units): the unit fired after having counted as dead."""
        self._revivals += back.sum(0)
        self._epoch_revivals += int(back.sum())
        returned = back.any(0)
        latest = len(back) - 1 - back[::-1].argmax(0)[returned]
        self._returned[returned] = steps[latest]
        self._seen_at_return[returned] = seen[latest]

    def _note_silence(self, last: Numbers, steps: Numbers, seen: Numbers) -> None:
        """`steps` (K + 1) and `seen` (K + 1) by record; `last` (units,) the number of the record last active in."""
        place = last - self._records  # 1…K for a unit that was active in one of these records
        moved = place > 0
        self._since[self._since < 0] = steps[0]
        self._since[moved] = steps[place[moved]]
        self._seen_then[moved] = seen[place[moved]]
        self._last_active = last

    def pop_epoch(self) -> DeadShare:
        """Dead over all records since the last call; start the next epoch."""
        units = max(len(self._last_active), 1)
        dead = DeadShare(int((self._last_active <= self._epoch_start).sum()) / units, self._epoch_samples)
        self._epoch_start, self._epoch_samples = self._records, 0
        return dead

    def pop_revived(self) -> int:
        """How often since the last call a unit that had counted as dead fired."""
        revived, self._epoch_revivals = self._epoch_revivals, 0
        return revived

    def units(self, layer: str) -> list[DeadUnit]:
        """Every unit that is dead now, over a whole window, or was and came back, in order."""
        dead = self._records - self._last_active >= self.length
        rows = []
        for unit in (dead | (self._revivals > 0)).nonzero()[0].tolist():
            since, seen = (self._since, self._seen_then) if dead[unit] else (self._returned, self._seen_at_return)
            numbers = (int(since[unit]), self._seen - int(seen[unit]), int(self._revivals[unit]))
            rows.append(DeadUnit(layer, unit, bool(dead[unit]), *numbers))
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Numbers, lists and tensors."""
        state = {name.lstrip("_"): value for name, value in vars(self).items()}
        tensors = {name: torch.from_numpy(value.copy()) for name, value in state.items() if hasattr(value, "dtype")}
        return state | tensors | {"samples": list(self._samples)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped; a window of another length goes on with what it has."""
        for name, value in state.items():
            if name not in ("length", "samples"):
                setattr(self, f"_{name}", value.numpy().copy() if isinstance(value, Tensor) else value)
        self._samples = deque(state["samples"], maxlen=self.length)


class EpochUnits:
    """The largest output of each unit over all steps of an epoch."""

    def __init__(self) -> None:
        self._maxima: dict[str, Tensor] = {}
        self._samples: dict[str, int] = {}

    def add(self, name: str, maxima: Tensor, samples: int) -> None:
        """Take in one call: its units' largest outputs, (units,), over so many samples."""
        before = self._maxima.get(name)
        if before is None or before.shape != maxima.shape:
            self._maxima[name], self._samples[name] = maxima, samples
        else:
            self._maxima[name] = torch.maximum(before, maxima)
            self._samples[name] += samples

    def pop(self, ranks: Ranks) -> dict[str, DeadShare]:
        """Units that were never positive in the epoch, on any rank; all ranks must call it. Start the next epoch."""
        maxima, samples = self._maxima, self._samples
        self._maxima, self._samples = {}, {}
        described = repr([(name, tuple(tensor.shape)) for name, tensor in maxima.items()])
        checks = ranks.gather(torch.tensor([check_sum(described)], device=ranks.device))
        if not maxima or bool((checks != checks[0]).any()):
            return {}  # ranks saw different layers
        vector, where = pack([*maxima.values(), torch.tensor(list(samples.values()), device=ranks.device)])
        gathered = ranks.gather(vector).cpu()
        active = (gathered > 0).any(0)
        seen = gathered[:, where.pop()].sum(0).tolist()
        return {
            name: DeadShare(1 - float(active[place].double().mean()), int(count))
            for name, place, count in zip(maxima, where, seen, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {"maxima": {name: tensor.cpu() for name, tensor in self._maxima.items()}, "samples": dict(self._samples)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where the checkpoint stopped."""
        self._maxima = {name: tensor.to(device) for name, tensor in state.get("maxima", {}).items()}
        self._samples = dict(state.get("samples", {}))
