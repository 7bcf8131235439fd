"""TensorBoard by its public door: all values of a record in one event."""

from collections.abc import Iterator, Mapping
from typing import Any

from bnlab_callbacks.core.lightning.names import Trainer
from bnlab_callbacks.core.lightning.trainer import logger_prefix


def takes_summaries(logger: Any) -> bool:
    """Whether `logger` is Lightning's TensorBoardLogger on torch's writer, neither overridden by something else."""
    if not type(logger).log_metrics.__module__.endswith("fabric.loggers.tensorboard"):
        return False
    return type(logger.experiment).__module__ == "torch.utils.tensorboard.writer"


def write_summary(logger: Any, values: Mapping[str, float], step: int, wall_time: float) -> None:
    """Write `values` as one event, with the tags that `logger.log_metrics` would give them.

    TensorBoard's `add_scalar` makes an event for each value, which takes five times as long.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    writer = logger.experiment.file_writer
    if writer is None:  # closed at the end of an earlier fit: this opens it again
        logger.log_metrics(dict(values), step=step)
        return
    prefix = logger_prefix(logger)
    summary = Summary(value=[Summary.Value(tag=prefix + tag, simple_value=value) for tag, value in values.items()])
    writer.add_summary(summary, step, wall_time)


def tensorboard_writers(trainer: Trainer) -> Iterator[tuple[Any, str]]:
    """The `SummaryWriter` of every TensorBoard logger, and what that logger puts before each tag."""
    for logger in trainer.loggers:
        writer = getattr(logger, "experiment", None)
        if hasattr(writer, "add_custom_scalars"):
            yield writer, logger_prefix(logger)
