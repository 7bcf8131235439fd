"""Seconds per epoch by batch size, and what batch norm adds to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnlab.reports import reference
from bnlab.reports.collection import Collection, Line
from bnlab.reports.names import BATCH_SIZES, thesis_dataset
from bnlab.reports.runs import Run
from bnlab.reports.statistics import Estimate, mean, mean_estimate


@dataclass(frozen=True)
class TimePair:
    """Seconds per epoch of the baseline with one batch size on one dataset, beside the thesis's."""

    batch_size: int
    dataset: str
    vanilla: Estimate | None
    batch_norm: Estimate | None
    thesis_vanilla: float | None
    thesis_batch_norm: float | None

    @property
    def overhead(self) -> float | None:
        """What batch norm adds to an epoch's time, as a share of it; None where a side is missing."""
        if self.vanilla is None or self.batch_norm is None or self.vanilla.value == 0:
            return None
        return self.batch_norm.value / self.vanilla.value - 1


def is_baseline(line: Line, architecture: str) -> bool:
    """Whether a line is the thesis's baseline (ReLU), with any batch size."""
    return line.architecture == architecture and line.thesis_experiment == "relu"


def baseline(architecture: str, batch_size: int) -> Line:
    """The thesis's baseline with a batch size."""
    return Line(architecture, f"{architecture}_relu", (), batch_size)


def baseline_sizes(collection: Collection, architecture: str) -> list[int]:
    """Batch sizes of the baseline's runs, and those of the thesis, in order."""
    found = {line.batch_size for line in collection.lines if is_baseline(line, architecture)}
    return sorted({*BATCH_SIZES, *found})


def seconds(runs: Sequence[Run]) -> Estimate | None:
    """Mean over runs that differ in the seed; None where no time is known."""
    known = [run.seconds_per_epoch for run in runs if run.seconds_per_epoch is not None]
    return mean_estimate(known) if known else None


def compare_times(collection: Collection, architecture: str, batch_size: int, dataset: str) -> TimePair:
    """One batch size on one dataset, also where there are no runs."""
    line = baseline(architecture, batch_size)
    ours = [seconds(collection.cell(line, dataset, flag)) for flag in (False, True)]
    name = thesis_dataset(dataset)
    thesis = [reference.epoch_seconds(architecture, batch_size, name, flag) for flag in (False, True)]
    return TimePair(batch_size, dataset, ours[0], ours[1], thesis[0], thesis[1])


def mean_overhead(pairs: Sequence[TimePair]) -> float | None:
    """Mean over datasets of batch norm's overhead in percent; None where no dataset has both sides."""
    known = [pair.overhead for pair in pairs if pair.overhead is not None]
    return 100 * mean(known) if known else None
