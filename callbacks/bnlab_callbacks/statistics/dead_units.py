"""Silent and dormant units: over a window of records, over an epoch, since when, and those that came back."""

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
    """A unit that counts as dead or dormant now: it was in a whole window of records; or one that did and came back.

    A dead unit of a rectifier was never positive; a dormant one had, in each record, outputs that are small beside
    those of its layer. A unit that is both counts as dead.
    """

    layer: str  # `<NN>_<layer>`
    unit: int
    dead: bool  # now
    since: int  # step of the first record of its present silence or dormancy; of its return, if it came back
    samples: int  # that it has been silent or dormant over, or active again
    revivals: int  # times that it came back
    dormant: bool = False  # now, without being dead


class UnitLedger:
    """The history of one layer's units, record by record: in which of them each was active.

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
            active: (K, units), whether the unit was positive in any sample of the record, or not dormant in it.
            samples: (K), samples of each record.
            steps: (K), the step of each record.

        Returns:
            after each of them, the units dead over the last `length` records, or over as many as there are.
        """
        import numpy

        fired = active.numpy()
        if fired.shape[1] != len(self._last_active):  # a layer of another size took the name: start anew
            self._start(fired.shape[1])
        numbers = numpy.arange(self._records + 1, self._records + len(fired) + 1)[:, None]
        last = numpy.maximum.accumulate(numpy.where(fired, numbers, self._last_active), 0)  # active, as of each record
        before = numpy.concatenate([self._last_active[None], last[:-1]])
        self._note_returns(fired & (numbers - 1 - before >= self.length), samples, steps)
        self._note_silence(fired, samples, steps)
        self._records += len(fired)
        self._seen += sum(samples)
        self._epoch_samples += sum(samples)
        self._last_active = last[-1].copy()
        shares = (last <= numpy.maximum(numbers - self.length, 0)).sum(1) / max(fired.shape[1], 1)
        found = []
        for share, number in zip(shares.tolist(), samples, strict=True):
            self._samples.append(number)
            found.append(DeadShare(share, sum(self._samples)))
        return found

    def _note_returns(self, back: Numbers, samples: Sequence[int], steps: Sequence[int]) -> None:
        """Units that were active again in a record, (K, units)."""
        for row in back.any(1).nonzero()[0].tolist():
            self._revivals += back[row]
            self._epoch_revivals += int(back[row].sum())
            self._returned[back[row]] = steps[row]
            self._seen_at_return[back[row]] = self._seen + sum(samples[:row])

    def _note_silence(self, fired: Numbers, samples: Sequence[int], steps: Sequence[int]) -> None:
        """Since when units are silent, and how many samples there were up to the last record in which they were not."""
        import numpy

        rows = len(fired)
        ever = fired.any(0)
        last = rows - 1 - fired[::-1].argmax(0)  # the last record of each unit that was active in one
        next_steps = numpy.array([*steps[1:], -1])  # none, where it was active to the end
        silent = numpy.where(self._since < 0, steps[0], self._since)
        self._since = numpy.where(ever, next_steps[last], silent)
        self._seen_then = numpy.where(ever, self._seen + numpy.cumsum(samples)[last], self._seen_then)

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
