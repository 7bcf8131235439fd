"""The thesis's tables B.3 and B.4: seconds per epoch by batch size, and the mean overhead of batch norm."""

import math
from collections.abc import Sequence

from bnlab.reports.estimates import Estimate, TimePair, compare_times, mean_overhead
from bnlab.reports.reading.collection import Collection, baseline
from bnlab.reports.reading.run import Run
from bnlab.reports.tables.notes import absent_note, provenance, shared_changes_note
from bnlab.reports.tables.table import MISSING, Cell, Table, estimate_words, rounded, side_values
from bnlab.reports.thesis import numbers
from bnlab.reports.thesis.experiments import DATASETS, dataset_title, thesis_dataset

_TABLES = {"mlp": "B.3", "cnn": "B.4"}
_DIGITS = {"mlp": (1, 0), "cnn": (0, 1)}  # decimals of seconds and of percents in the thesis


def time_table(collection: Collection, architecture: str) -> Table:
    """Table B.3 (`mlp`) or B.4 (`cnn`): the baseline's time per epoch, a row for each batch size.

    The time is that of training and validation, without writing files between epochs. Times of two machines do not
    compare, so the overhead is the number to hold against the thesis's.
    """
    sizes = collection.baseline_sizes(architecture)
    lines = [baseline(architecture, size) for size in sizes]
    datasets = collection.datasets(lines)
    pairs = [[compare_times(collection, architecture, size, dataset) for dataset in datasets] for size in sizes]
    absent = [name for name in DATASETS if name not in map(thesis_dataset, datasets)]
    known = [pair for row in pairs for pair in row]
    known += [compare_times(collection, architecture, size, name) for size in sizes for name in absent]
    table = _TABLES[architecture]
    return Table(
        name=f"table_{table.lower().replace('.', '_')}_epoch_seconds_{architecture}",
        title=f"Seconds per epoch of the {architecture.upper()}, ReLU (thesis: table {table})",
        groups=(("", 2), *((dataset_title(dataset), 2) for dataset in datasets)),
        header=("Batch size", "Mean overhead", *(("V", "B") * len(datasets))),
        rows=tuple(_row(architecture, row, size) for row, size in zip(pairs, sizes, strict=True)),
        heads=1,
        notes=(*_notes(collection, collection.runs_of(lines, datasets)), *absent_note(absent)),
        records=tuple(_record(architecture, pair) for pair in known),
    )


def _row(architecture: str, pairs: Sequence[TimePair], size: int) -> tuple[Cell, ...]:
    overhead, thesis = mean_overhead(pairs), numbers.mean_overhead(architecture, size)
    shown = MISSING if overhead is None else f"{overhead:.1f} %"
    digits, percent_digits = _DIGITS[architecture]
    beside = "" if thesis is None else f"{thesis:.{percent_digits}f} %"
    times = (
        Cell(_seconds_words(side.estimate), "" if side.thesis is None else f"{side.thesis:.{digits}f}")
        for pair in pairs
        for side in pair.sides
    )
    return (Cell(str(size)), Cell(shown, beside), *times)


def _seconds_words(estimate: Estimate | None) -> str:
    """About three digits, as times range from hundredths to hundreds of seconds."""
    if estimate is None:
        return MISSING
    return estimate_words(estimate, digits=max(0, min(3, 2 - math.floor(math.log10(max(estimate.value, 1e-9))))))


def _notes(collection: Collection, runs: Sequence[Run]) -> tuple[str, ...]:
    if not runs:
        return ("No runs of the baseline (ReLU).",)
    machines = {run.hardware for run in runs}
    mixed = ("The runs are of several machines, so their times do not compare.",) if len(machines) > 1 else ()
    return (
        "V vanilla, B batch norm, with the thesis's values in brackets or beneath. An epoch is training and "
        "validation; mean over the run's epochs, then ± 95 % t-interval over seeds; without ±, n = 1. Mean overhead: "
        "of the datasets' B / V − 1, of those shown.",
        *mixed,
        *shared_changes_note(collection),
        *provenance(runs),
        f"The thesis's hardware: {numbers.SETUP}.",
    )


def _record(architecture: str, pair: TimePair) -> dict[str, object]:
    return {
        "architecture": architecture,
        "batch_size": pair.batch_size,
        "dataset": pair.dataset,
        **side_values(pair.sides, "seconds"),
        "overhead_percent": rounded(pair.overhead),
    }
