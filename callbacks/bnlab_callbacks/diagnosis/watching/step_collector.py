"""Losses and records since the last look, step by step, and the same on all ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.core.device import Change, DeviceValues, to_host, widest
from bnlab_callbacks.core.naming import split_tag
from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.diagnosis.observations import Observation
from bnlab_callbacks.diagnosis.watching.candidates import Candidate
from bnlab_callbacks.diagnosis.watching.task_reader import SEEN

# quantities of a step without a layer
GLOBALS = ("samples", "input_mean", "input_std", "input_absmax", "input_unscaled", "last_absmax", *SEEN)


class DisagreementError(RuntimeError):
    """A rank failed, or ranks saw different steps: no rank can go on."""


class Collected(NamedTuple):
    """The steps since the last look."""

    losses: dict[int, float]  # by step, means over its batches and over ranks
    observations: dict[int, Observation]
    extra: list[float]  # rank 0's, as given


class Compared(NamedTuple):
    """What a step's loss may have compared."""

    step: int
    loss: Tensor
    candidates: list[Candidate]


class _Waiting(NamedTuple):
    """Values on their device."""

    losses: list[tuple[int, Tensor]]
    globals: dict[int, dict[str, Tensor]]
    compared: list[Compared]

    def change_tensors(self, change: Change) -> _Waiting:
        """The same with other tensors."""
        return _Waiting(
            [(step, change(loss)) for step, loss in self.losses],
            {step: {name: change(value) for name, value in values.items()} for step, values in self.globals.items()},
            [
                Compared(step, change(loss), [candidate.change_tensors(change) for candidate in candidates])
                for step, loss, candidates in self.compared
            ],
        )


class StepCollector:
    """Keeps losses and records, on the device where they are, until they are fetched."""

    def __init__(self) -> None:
        self._open = _Waiting([], {}, [])
        self._closed: list[DeviceValues] = []  # what is on its way to the host
        self._losses: list[tuple[int, float]] = []
        self._globals: dict[int, dict[str, Tensor | float]] = {}
        self._layers: dict[int, dict[str, dict[str, float]]] = {}
        self.losses = 0  # since the last `fetch`

    def add_loss(self, step: int, loss: Tensor) -> None:
        """Keep the loss of one of a step's batches."""
        self.losses += 1
        self._open.losses.append((step, loss))

    def add_globals(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Keep quantities without a layer, 0-dimensional."""
        self._open.globals.setdefault(step, {}).update(values)

    def add_compared(self, step: int, loss: Tensor, candidates: list[Candidate]) -> None:
        """Keep what may tell the task."""
        self._open.compared.append(Compared(step, loss, candidates))

    def add_numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Keep quantities without a layer that are on the host."""
        self._globals.setdefault(step, {}).update(values)

    def waiting(self) -> Iterable[DeviceValues]:
        """All that is not read yet, to be brought to the host."""
        self._closed.append(DeviceValues(self._open, _Waiting.change_tensors))
        self._open = _Waiting([], {}, [])
        return self._closed

    def read(self) -> list[Compared]:
        """Read what was brought to the host; gives what losses compared, step by step."""
        compared: list[Compared] = []
        for values in self._closed:
            here: _Waiting = values.value
            # one by one: on the host that is faster than to join them
            self._losses += [(step, float(loss)) for step, loss in here.losses]
            for step, of_step in here.globals.items():
                self._globals.setdefault(step, {}).update(of_step)
            compared += here.compared
        self._closed = []
        return compared

    def add_record(self, step: int, values: Mapping[str, float]) -> None:
        """Keep what a recorder recorded, by its tags; equal on all ranks already."""
        layers = self._layers.setdefault(step, {})
        for tag, value in values.items():
            quantity, layer = split_tag(tag)
            if layer:
                layers.setdefault(quantity, {})[layer.partition("_")[2]] = value

    def fetch(self, ranks: Ranks, extra: list[float], failure: str | None = None) -> Collected:
        """Everything that was read: means over ranks, which must all call this at the same steps.

        Args:
            ranks: of the run.
            extra: numbers to have from rank 0.
            failure: why this rank cannot go on; then none can.

        Raises:
            DisagreementError: on all ranks alike.
        """
        losses, without_layer, layers = self._losses, self._globals, self._layers
        self._losses, self._globals, self._layers, self.losses = [], {}, {}, 0
        steps = sorted({*without_layer, *layers})
        fields: list[Tensor | float] = [loss for _, loss in losses]
        fields += [without_layer.get(step, {}).get(name, math.nan) for step in steps for name in GLOBALS]
        gathered = _gather(ranks, [*fields, *extra], failure)
        rows = gathered.mean(0).tolist()
        parts: dict[int, list[float]] = defaultdict(list)
        for (step, _), loss in zip(losses, rows, strict=False):
            parts[step].append(loss)
        bad: dict[int, int] = {}
        for index, rank in torch.nonzero(~gathered[:, : len(losses)].isfinite().T).tolist():
            bad.setdefault(losses[index][0], rank)
        numbers = iter(rows[len(losses) :])
        seen = {}
        for step in steps:
            values = {name: value for name in GLOBALS if not math.isnan(value := next(numbers))}
            first_bad = min((at for at in bad if at <= step), default=None)
            rank = bad[first_bad] if first_bad is not None and ranks.size > 1 else None
            seen[step] = Observation(step, layers.get(step, {}), values, rank)
        means = {step: fmean(values) if len(values) > 1 else values[0] for step, values in parts.items()}
        return Collected(means, seen, gathered[0, len(fields) :].tolist())


def _gather(ranks: Ranks, fields: list[Tensor | float], failure: str | None) -> Tensor:
    """(ranks, fields) on the host; ranks first agree that all can go on, with messages of one length."""
    device = ranks.device if ranks.size > 1 else torch.device("cpu")
    if ranks.size > 1:
        agreed = ranks.gather(torch.tensor([len(fields), failure is not None], device=device)).cpu()
        if bool(agreed[:, 1].any()):
            raise DisagreementError(failure or "it failed on another rank.")
        if bool((agreed[:, 0] != agreed[0, 0]).any()):
            raise DisagreementError("ranks returned different numbers of losses.")
    elif failure is not None:
        raise DisagreementError(failure)
    mine = torch.tensor(to_host(fields), dtype=widest(device), device=device)
    return ranks.gather(mine).cpu()
