"""What was recorded since the last look, step by step, and the same on all ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.core.device import Change, DeviceValues, bring_to_host
from bnlab_callbacks.core.lightning.names import Trainer
from bnlab_callbacks.core.lightning.scalars import gather_ranks, to_host, widest
from bnlab_callbacks.diagnosis.observations import Observation
from bnlab_callbacks.diagnosis.watching.task import Guess
from bnlab_callbacks.record_file import split_tag

WHOLE = ("output_std", "input_mean", "input_std", "input_absmax")  # quantities of a step without a layer


class DisagreementError(RuntimeError):
    """A rank failed, or ranks saw different steps: no rank can go on."""


class Collected(NamedTuple):
    """The steps since the last look."""

    losses: dict[int, float]  # by step, means over its batches and over ranks
    observations: dict[int, Observation]
    extra: list[float]  # rank 0's, as given


class _Waiting(NamedTuple):
    """What waits on its device."""

    losses: list[tuple[int, Tensor | float]]
    whole: dict[int, dict[str, Tensor]]
    guesses: list[Guess]

    def change_tensors(self, change: Change) -> _Waiting:
        """The same with other tensors."""
        return _Waiting(
            [(step, change(loss) if isinstance(loss, Tensor) else loss) for step, loss in self.losses],
            {step: {name: change(value) for name, value in values.items()} for step, values in self.whole.items()},
            [Guess(classes, change(numbers)) for classes, numbers in self.guesses],
        )


class StepCollector:
    """Keeps losses and records, on the device where they are, until they are fetched."""

    def __init__(self) -> None:
        self._waiting = _Waiting([], {}, [])
        self._layers: dict[int, dict[str, dict[str, float]]] = {}

    @property
    def losses(self) -> int:
        """Number of losses that wait."""
        return len(self._waiting.losses)

    def add_loss(self, step: int, loss: Tensor) -> None:
        """Keep the loss of one of a step's batches."""
        self._waiting.losses.append((step, loss))

    def add_whole(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Keep quantities without a layer, 0-dimensional."""
        self._waiting.whole.setdefault(step, {}).update(values)

    def add_guesses(self, guesses: Sequence[Guess]) -> None:
        """Keep what may tell the task."""
        self._waiting.guesses.extend(guesses)

    def bring_to_host(self, others: Sequence[DeviceValues]) -> list[Guess]:
        """Bring what waits here, and what `others` left, to the host through one copy; gives the guesses."""
        mine = DeviceValues(self._waiting, _Waiting.change_tensors)
        bring_to_host([*others, mine])
        here: _Waiting = mine.value
        # one by one: on the host that is faster than to join them
        losses: list[tuple[int, Tensor | float]] = [(step, float(loss)) for step, loss in here.losses]
        self._waiting = here._replace(losses=losses, guesses=[])
        return here.guesses

    def add_record(self, step: int, values: Mapping[str, float]) -> None:
        """Keep what a monitor recorded, by its tags; equal on all ranks already."""
        layers = self._layers.setdefault(step, {})
        for tag, value in values.items():
            quantity, layer = split_tag(tag)
            if layer:
                layers.setdefault(quantity, {})[layer.partition("_")[2]] = value

    def fetch(self, trainer: Trainer, extra: list[float], failure: str | None = None) -> Collected:
        """Everything that was brought to the host: means over ranks, which must all call this at the same steps.

        Args:
            trainer: the Trainer.
            extra: numbers to have from rank 0.
            failure: why this rank cannot go on; then none can.

        Raises:
            DisagreementError: on all ranks alike.
        """
        (waiting, whole, _), layers = self._waiting, self._layers
        self.__init__()  # type: ignore[misc]
        steps = sorted({*whole, *layers})
        fields: list[Tensor | float] = [loss for _, loss in waiting]
        fields += [whole.get(step, {}).get(name, math.nan) for step in steps for name in WHOLE]
        ranks = _gather(trainer, [*fields, *extra], failure)
        rows = ranks.mean(0).tolist()
        parts: dict[int, list[float]] = defaultdict(list)
        for (step, _), loss in zip(waiting, rows, strict=False):
            parts[step].append(loss)
        bad: dict[int, int] = {}
        for index, rank in torch.nonzero(~ranks[:, : len(waiting)].isfinite().T).tolist():
            bad.setdefault(waiting[index][0], rank)
        numbers = iter(rows[len(waiting) :])
        seen = {}
        for step in steps:
            values = {name: value for name in WHOLE if not math.isnan(value := next(numbers))}
            first_bad = min((at for at in bad if at <= step), default=None)
            rank = bad[first_bad] if first_bad is not None and len(ranks) > 1 else None
            seen[step] = Observation(step, layers.get(step, {}), values, rank)
        losses = {step: fmean(values) if len(values) > 1 else values[0] for step, values in parts.items()}
        return Collected(losses, seen, ranks[0, len(fields) :].tolist())


def _gather(trainer: Trainer, fields: list[Tensor | float], failure: str | None) -> Tensor:
    """(ranks, fields) on the host; ranks first agree that all can go on, with messages of one length."""
    device = trainer.strategy.root_device if trainer.world_size > 1 else torch.device("cpu")
    if trainer.world_size > 1:
        agreed = gather_ranks(trainer, torch.tensor([len(fields), failure is not None], device=device)).cpu()
        if bool(agreed[:, 1].any()):
            raise DisagreementError(failure or "it failed on another rank.")
        if bool((agreed[:, 0] != agreed[0, 0]).any()):
            raise DisagreementError("ranks returned different numbers of losses.")
    elif failure is not None:
        raise DisagreementError(failure)
    mine = torch.tensor(to_host(fields), dtype=widest(device), device=device)
    return gather_ranks(trainer, mine).cpu()
