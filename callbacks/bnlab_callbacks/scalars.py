"""From 0-dimensional tensors to the Trainer's loggers, with one copy off the device and one write per record."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bnlab_callbacks.lightning_api import Trainer


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
    groups: dict[bool, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        groups[tensor.is_floating_point()].append(index)
    # one join and one conversion per group, not per tensor: launches are what a small net's record costs
    joined = [_join([tensors[i] for i in group], device) for group in groups.values()]
    where: dict[int, slice] = {}
    start = 0
    for index in (index for group in groups.values() for index in group):
        where[index] = slice(start, start + tensors[index].numel())
        start = where[index].stop
    return torch.cat([part.to(widest(device)) for part in joined]), [where[index] for index in range(len(tensors))]


def _join(tensors: list[Tensor], device: torch.device) -> Tensor:
    if any(tensor.device != device for tensor in tensors):  # a model over several devices
        tensors = [tensor.to(device) for tensor in tensors]
    if all(tensor.ndim == 0 for tensor in tensors):
        return torch.stack(tensors)
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def to_host(tensors: Sequence[Tensor]) -> list[float]:
    """Values of 0-dimensional tensors, in their order, through one copy off the device."""
    if not tensors:
        return []
    vector, where = pack(tensors)
    values = vector.tolist()
    return [values[place.start] for place in where]


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


def log_scalars(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Give `metrics` to every logger of the Trainer, at `step`; ranks other than 0 write nothing, as in Lightning.

    TensorBoard gets one event with all the values: its `add_scalar` makes an event each, 25 times slower at 48 values.
    """
    if not metrics or not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        write = getattr(logger, "experiment", None) if _is_plain_tensorboard(logger) else None
        if type(write).__module__ == "torch.utils.tensorboard.writer":
            _write_one_event(write, logger, metrics, step)
        else:
            logger.log_metrics(dict(metrics), step=step)


def _is_plain_tensorboard(logger: Any) -> bool:
    """Lightning's TensorBoardLogger, its `log_metrics` not overridden by a subclass with plans of its own."""
    return bool(type(logger).log_metrics.__module__.endswith("fabric.loggers.tensorboard"))


def _write_one_event(writer: Any, logger: Any, metrics: Mapping[str, float], step: int) -> None:
    from torch.utils.tensorboard.summary import Summary  # type: ignore[attr-defined]

    prefix = f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else ""
    values = [Summary.Value(tag=prefix + tag, simple_value=value) for tag, value in metrics.items()]
    writer._get_file_writer().add_summary(Summary(value=values), step)


def publish_epoch(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Log an epoch's values and put them among `trainer.callback_metrics`, where EarlyStopping and others look."""
    log_scalars(trainer, metrics, step)
    trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in metrics.items()})


class EpochMeans:
    """Means over an epoch's records, tag by tag; a value that is not finite is left out, so one bad step spoils none.

    Tags `<quantity>/<layer>` come out as `<quantity>_epoch/<layer>`.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take in one record."""
        for tag, value in metrics.items():
            if math.isfinite(value):
                self._sums[tag] = self._sums.get(tag, 0.0) + value
                self._counts[tag] = self._counts.get(tag, 0) + 1

    def pop(self) -> dict[str, float]:
        """The epoch's means; start the next epoch."""
        means = {epoch_tag(tag): total / self._counts[tag] for tag, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


def epoch_tag(tag: str) -> str:
    """`grad_rms/00_fc1` → `grad_rms_epoch/00_fc1`."""
    quantity, _, layer = tag.partition("/")
    return f"{quantity}_epoch/{layer}"
