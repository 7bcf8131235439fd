"""From 0-dimensional tensors to the Trainer's loggers, with one copy off the device."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bnlab_callbacks.core.lightning.names import Trainer
from bnlab_callbacks.core.lightning.tensorboard_events import write_event, write_events, writes_plainly


def widest(device: torch.device) -> torch.dtype:
    """float64, which holds every count exactly, or float32 where the device has nothing wider (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def pack(tensors: Sequence[Tensor]) -> tuple[Tensor, list[slice]]:
    """Join tensors of any shape and dtype into one vector of the widest float dtype, on the first one's device.

    Returns:
        the vector, and where in it each tensor's elements lie.
    """
    device = tensors[0].device
    # floats and whole numbers apart, so that counts stay exact; not by dtype: ranks whose batches differ in size may
    # compute in float32 and in float64, and their vectors must be laid out alike
    groups: dict[tuple[bool, bool], list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        groups[tensor.is_floating_point(), tensor.ndim == 0].append(index)
    # one join and one conversion per group, not per tensor: launches are what a small net's record costs
    joined = [_join([tensors[i] for i in group], device, single) for (_, single), group in groups.items()]
    where: dict[int, slice] = {}
    start = 0
    for (_, single), group in groups.items():
        for index in group:
            where[index] = slice(start, start + (1 if single else tensors[index].numel()))
            start = where[index].stop
    return torch.cat([part.to(widest(device)) for part in joined]), [where[index] for index in range(len(tensors))]


def _join(tensors: list[Tensor], device: torch.device, single: bool) -> Tensor:
    if any(tensor.device != device for tensor in tensors):  # a model over several devices
        tensors = [tensor.to(device) for tensor in tensors]
    return torch.stack(tensors) if single else torch.cat([tensor.reshape(-1) for tensor in tensors])


def to_host(values: Sequence[Tensor | float]) -> list[float]:
    """Values of 0-dimensional tensors, in their order, through one copy off the device; numbers stay as they are."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return [float(value) for value in values]
    vector, where = pack(tensors)
    numbers: list[float] = vector.tolist()
    read = (numbers[place.start] for place in where)
    return [next(read) if isinstance(value, Tensor) else value for value in values]


def gather_ranks(trainer: Trainer, tensor: Tensor) -> Tensor:
    """The tensor of every rank, (ranks, *shape), without gradients; all ranks must call it."""
    if trainer.world_size == 1:
        return tensor.unsqueeze(0)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        gathered: Tensor = trainer.strategy.all_gather(tensor)  # strategies with collectives of their own (XLA)
        return gathered
    # not Lightning's all_gather: it goes through functions that torch 2.15 deprecates
    parts = [torch.empty_like(tensor) for _ in range(trainer.world_size)]
    torch.distributed.all_gather(parts, tensor)
    return torch.stack(parts)


def log_scalars(trainer: Trainer, metrics: Mapping[str, float], step: int, wall_time: float | None = None) -> None:
    """Give `metrics` to every logger of the Trainer, at `step`; ranks other than 0 write nothing, as in Lightning.

    TensorBoard gets one event with all the values; `wall_time` (seconds since 1970, None for now) is for it alone.
    """
    if not metrics or not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if writes_plainly(logger):
            write_event(logger, metrics, step, time.time() if wall_time is None else wall_time)
        else:
            logger.log_metrics(dict(metrics), step=step)


def log_table(trainer: Trainer, tags: Sequence[str], values: Tensor, moments: Sequence[tuple[int, float]]) -> None:
    """The same for K steps at once: `values` (K, tags), `moments` (K) their steps and wall times."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if writes_plainly(logger):
            write_events(logger, tags, values, moments)
        else:
            for row, (step, _) in zip(values.tolist(), moments, strict=True):
                logger.log_metrics(dict(zip(tags, row, strict=True)), step=step)


class EpochMeans:
    """Means over an epoch's records, tag by tag; a value that is not finite is left out, so one bad step spoils none.

    Tags `<quantity>/<layer>` come out as `<quantity>_epoch/<layer>`.
    """

    def __init__(self, state: Sequence[Any] = ()) -> None:
        # for each set of tags (2, tags), float64: sums and numbers of the finite values
        self._totals: dict[tuple[str, ...], Tensor] = {tuple(tags): totals.clone() for tags, totals in state}

    def add(self, tags: tuple[str, ...], values: Tensor) -> None:
        """Take in K records, `values` (K, tags)."""
        totals = self._totals.setdefault(tags, torch.zeros(2, len(tags), dtype=torch.float64))
        finite = values.isfinite()
        totals[1] += finite.sum(0)
        for row in values.where(finite, 0):  # one by one: the sum is the same however the records are grouped
            totals[0] += row

    def __bool__(self) -> bool:
        return bool(self._totals)

    def pop(self) -> dict[str, float]:
        """The epoch's means; start the next epoch."""
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, float] = defaultdict(float)
        for tags, totals in self._totals.items():
            for tag, total, count in zip(tags, *totals.tolist(), strict=True):
                sums[tag] += total
                counts[tag] += count
        self._totals = {}
        return {epoch_tag(tag): total / counts[tag] for tag, total in sums.items() if counts[tag]}

    def state_dict(self) -> list[Any]:
        """What a new one needs to go on."""
        return [[list(tags), totals.clone()] for tags, totals in self._totals.items()]


def epoch_tag(tag: str) -> str:
    """`grad_rms/00_fc1` → `grad_rms_epoch/00_fc1`, `grad_depth_slope` → `grad_depth_slope_epoch`."""
    quantity, slash, layer = tag.partition("/")
    return f"{quantity}_epoch{slash}{layer}"
