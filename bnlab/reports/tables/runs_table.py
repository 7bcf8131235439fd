"""The table of all runs with their outcomes."""

from bnlab.reports.reading.collection import Collection
from bnlab.reports.reading.run import Run, changes_words
from bnlab.reports.tables.notes import count
from bnlab.reports.tables.table import MISSING, Cell, Table, rounded
from bnlab.reports.thesis.experiments import dataset_title


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
        "changes": changes_words(run.changes),
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
