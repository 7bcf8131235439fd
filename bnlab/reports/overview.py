"""The report in a few lines: what the runs are, how many signs agree with the thesis's, how many conclusions hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bnlab.reports.accuracy import Pair, compare
from bnlab.reports.accuracy_table import accuracy_lines
from bnlab.reports.claims.verdict import Conclusion
from bnlab.reports.collection import Collection, shown_path
from bnlab.reports.names import dataset_title, norm_words
from bnlab.reports.provenance import count
from bnlab.reports.run_files import clean
from bnlab.reports.runs import Run
from bnlab.reports.statistics import mean
from bnlab.reports.table import MISSING, Cell, Table, rounded


class Deviation(NamedTuple):
    """How far the test accuracies on a dataset lie from the thesis's, in points."""

    dataset: str  # for people
    cells: int
    mean: float  # of the absolute values
    largest: float  # with its sign, ours − the thesis's
    where: str  # the cell of the largest, for people


@dataclass(frozen=True)
class Overview:
    """Counts for the top of a report."""

    runs: int
    left_out: int
    datasets: tuple[str, ...]  # for people
    signs: Counter[str]  # of the cells that the thesis has too: agree, differ, within the interval
    deviations: tuple[Deviation, ...]
    verdicts: Counter[str]  # of the conclusions: supported, contradicted, cannot tell, without runs

    def sentences(self) -> list[str]:
        """For people."""
        told = [f"{count(self.runs, 'run')} on {', '.join(self.datasets)}; {self.left_out} left out."]
        told += [
            f"{one.dataset}: {count(one.cells, 'test accuracy', 'test accuracies')} off the thesis's by "
            f"{one.mean:.2f} points on average, at most by {one.largest:+.2f} ({one.where})."
            for one in self.deviations
        ]
        cells = sum(self.signs.values())
        if cells:
            parts = [f"{number} {sign}" for sign, number in self.signs.items() if number]
            told.append(
                f"Sign of batch norm's gain against the thesis's: of {count(cells, 'cell')} {', '.join(parts)}."
            )
        parts = [f"{number} {verdict}" for verdict, number in self.verdicts.items() if number]
        if parts:
            told.append(f"The thesis's conclusions: {', '.join(parts)}.")
        return told


def overview(collection: Collection, conclusions: Sequence[Conclusion]) -> Overview:
    """Count everything."""
    pairs = [
        compare(collection, line, dataset)
        for architecture in architectures(collection)
        for line in accuracy_lines(collection, architecture)
        for dataset in collection.datasets([line])
    ]
    signs: Counter[str] = Counter({"agree": 0, "differ": 0, "within the interval": 0})
    signs.update(pair.verdict for pair in pairs if pair.verdict)
    verdicts: Counter[str] = Counter({"supported": 0, "contradicted": 0, "cannot tell": 0, "without runs": 0})
    verdicts.update(one.verdict if one.findings else "without runs" for one in conclusions)
    labels = collection.datasets(collection.lines)
    found = [deviation(label, [pair for pair in pairs if pair.dataset == label]) for label in labels]
    return Overview(
        runs=len(collection.runs),
        left_out=len(collection.left_out),
        datasets=tuple(map(dataset_title, labels)),
        signs=signs,
        deviations=tuple(one for one in found if one is not None),
        verdicts=verdicts,
    )


def deviation(dataset: str, pairs: Sequence[Pair]) -> Deviation | None:
    """Of one dataset's cells that the thesis has too; None for none."""
    off: dict[str, float] = {}
    for pair in pairs:
        sides = ((pair.vanilla, pair.thesis_vanilla), (pair.batch_norm, pair.thesis_batch_norm))
        for flag, (ours, thesis) in zip((False, True), sides, strict=True):
            if ours.estimate is not None and thesis is not None:
                off[f"{pair.line.experiment} {norm_words(flag)}"] = ours.estimate.value - thesis
    if not off:
        return None
    where = max(off, key=lambda cell: abs(off[cell]))
    return Deviation(dataset_title(dataset), len(off), mean([abs(value) for value in off.values()]), off[where], where)


def architectures(collection: Collection) -> list[str]:
    """Those that have runs, the MLP first."""
    return [name for name in ("mlp", "cnn") if any(run.architecture == name for run in collection.runs)]


def runs_table(collection: Collection, addresses: dict[Run, str]) -> Table:
    """Every run with its outcome; `addresses` are the links to the runs' folders."""
    runs = sorted(collection.runs, key=lambda run: (run.architecture != "mlp", collection.path(run)))
    return Table(
        name="runs",
        title="Runs",
        groups=(("", 8),),
        header=("Run", "Dataset", "Net", "Seed", "Batch", "Outcome", "Test accuracy, %", "Seconds per epoch"),
        rows=tuple(_run_cells(collection, run, addresses.get(run, "")) for run in runs),
        heads=1,
        notes=(),
        records=tuple(_run_record(collection, run) for run in runs),
    )


def _run_cells(collection: Collection, run: Run, address: str) -> tuple[Cell, ...]:
    epochs = "" if run.epochs is None else f", {count(run.epochs, 'epoch')}"
    return (
        Cell(collection.path(run), link=address),
        Cell(dataset_title(run.dataset)),
        Cell("B" if run.batch_norm else "V"),
        Cell(MISSING if run.seed is None else str(run.seed)),
        Cell(str(run.batch_size)),
        Cell(f"{run.status}{epochs}"),
        Cell(MISSING if run.test_acc is None else f"{100 * run.test_acc:.2f}"),
        Cell(MISSING if run.seconds_per_epoch is None else f"{run.seconds_per_epoch:.3g}"),
    )


def _run_record(collection: Collection, run: Run) -> dict[str, object]:
    known = dict(run.versions)
    return {
        "run": collection.path(run),
        "experiment": run.experiment,
        "architecture": run.architecture,
        "dataset": run.dataset,
        "batch_norm": run.batch_norm,
        "seed": run.seed,
        "batch_size": run.batch_size,
        "changes": ", ".join(f"{name}={value}" for name, value in run.changes),
        "status": run.status,
        "epochs": run.epochs,
        "diverged_at_step": run.diverged_at,
        "test_accuracy_percent": None if run.test_acc is None else rounded(100 * run.test_acc),
        "val_accuracy_percent": None if run.val_acc is None else rounded(100 * run.val_acc),
        "seconds_per_epoch": rounded(run.seconds_per_epoch),
        "precision": run.precision,
        "hardware": run.hardware,
        "torch": known.get("torch"),
        "lightning": known.get("lightning"),
        "bnlab": known.get("bnlab"),
        "code": run.code,
        "started": run.started,
        "ended": run.ended,
    }


def left_out_lines(collection: Collection) -> list[tuple[str, str]]:
    """Path and reason of what does not count."""
    return [(shown_path(one.folder, collection.root), clean(one.reason)) for one in collection.left_out]
