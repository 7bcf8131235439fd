"""Tables of test accuracy: the thesis's B.1 and B.2, and by batch size those of its figures 7.15 and 7.38."""

from collections.abc import Iterable, Mapping, Sequence

from bnlab.reports.estimates import AccuracyPair, Measured, compare_accuracies
from bnlab.reports.reading.collection import Collection, Line, baseline
from bnlab.reports.reading.run import Run, changes_words
from bnlab.reports.tables.notes import absent_note, count, provenance, shared_changes_note
from bnlab.reports.tables.table import MISSING, Cell, Table, Tone, estimate_values, estimate_words, side_values
from bnlab.reports.thesis.experiments import DATASETS, EXPERIMENTS, dataset_title, thesis_dataset, thesis_experiment
from bnlab.reports.thesis.figures import BATCH_SIZE_FIGURES

_TABLES = {"mlp": "B.1", "cnn": "B.2"}
_TONES: dict[str, Tone] = {"agree": "agree", "differ": "differ", "within the interval": "within"}


def accuracy_table(collection: Collection, architecture: str) -> Table:
    """Table B.1 (`mlp`) or B.2 (`cnn`): a row for each experiment, ours beside the thesis's.

    The thesis's nine experiments always have a row; below them stand the user's own experiments and runs that change
    something. The thesis's datasets without runs have no columns; in the records, for CSV, they are too.
    """
    lines = accuracy_lines(collection, architecture)
    datasets = collection.datasets(lines)
    pairs = [[compare_accuracies(collection, line, dataset) for dataset in datasets] for line in lines]
    rows = tuple((*_row_heads(line), *_pair_cells(row)) for line, row in zip(lines, pairs, strict=True))
    runs = collection.runs_of(lines, datasets)
    absent = [name for name in DATASETS if name not in map(thesis_dataset, datasets)]
    records = [_record(pair) for row in pairs for pair in row]
    records += [
        _record(compare_accuracies(collection, line, name))
        for line in lines
        if line.thesis_experiment
        for name in absent
    ]
    return Table(
        name=f"table_{_TABLES[architecture].lower().replace('.', '_')}_test_accuracy_{architecture}",
        title=f"Test accuracy of the {architecture.upper()} in percent (thesis: table {_TABLES[architecture]})",
        groups=(("", 2), *((dataset_title(dataset), 3) for dataset in datasets)),
        header=("Parameter", "Value", *(("V", "B", "B − V") * len(datasets))),
        rows=rows,
        heads=2,
        notes=(*_notes(collection, runs, pairs), *absent_note(absent)),
        records=tuple(records),
    )


def batch_size_table(collection: Collection, architecture: str) -> Table | None:
    """Test accuracy of the baseline by batch size, as in figure 7.15 or 7.38.

    Its datasets are those with runs of two sizes or more; None without such a dataset.
    """
    lines = [baseline(architecture, size) for size in collection.baseline_sizes(architecture)]
    sizes_of = {name: sum(any(collection.sides(line, name)) for line in lines) for name in collection.datasets(lines)}
    datasets = [name for name, sizes in sizes_of.items() if sizes > 1]
    if not datasets:
        return None
    pairs = [[compare_accuracies(collection, line, dataset) for dataset in datasets] for line in lines]
    rows = tuple((Cell(str(line.batch_size)), *_pair_cells(row)) for line, row in zip(lines, pairs, strict=True))
    figure = BATCH_SIZE_FIGURES[architecture]
    return Table(
        name=f"figure_{figure.replace('.', '_')}_batch_size_{architecture}",
        title=f"Test accuracy of the {architecture.upper()} by batch size in percent, ReLU (thesis: figure {figure})",
        groups=(("", 1), *((dataset_title(dataset), 3) for dataset in datasets)),
        header=("Batch size", *(("V", "B", "B − V") * len(datasets))),
        rows=rows,
        heads=1,
        notes=(
            *_notes(collection, collection.runs_of(lines, datasets), pairs),
            "The thesis draws these accuracies without giving the numbers; those at 64 are in its tables.",
        ),
        records=tuple(_record(pair) for row in pairs for pair in row),
    )


def accuracy_lines(collection: Collection, architecture: str) -> list[Line]:
    """The rows of table B.1 or B.2."""
    thesis = [Line(architecture, f"{architecture}_{name}") for name in EXPERIMENTS]
    others = [
        line
        for line in collection.lines
        if line.architecture == architecture and line not in thesis and not line.is_baseline
    ]
    return thesis + others


def _row_heads(line: Line) -> tuple[Cell, Cell]:
    name = thesis_experiment(line.experiment, line.architecture)
    return Cell(EXPERIMENTS[name].parameter if name else "Not in the thesis"), Cell(line.words)


def _pair_cells(pairs: Iterable[AccuracyPair]) -> Iterable[Cell]:
    for pair in pairs:
        better = pair.gain.value if pair.gain else 0.0
        yield _accuracy_cell(pair.sides[0], better < 0)
        yield _accuracy_cell(pair.sides[1], better > 0)
        text = estimate_words(pair.gain, signed=True) if pair.gain else MISSING
        thesis = "" if pair.thesis_gain is None else f"{pair.thesis_gain:+.1f}"
        verdict = pair.verdict or ""
        yield Cell(text, thesis, verdict, _TONES.get(verdict, ""))


def _accuracy_cell(found: Measured, better: bool) -> Cell:
    text = estimate_words(found.estimate) if found.estimate else MISSING
    dagger = " †" if found.diverged and found.estimate else ""
    return Cell(text + dagger, "" if found.thesis is None else f"{found.thesis:.1f}", strong=better)


def _notes(collection: Collection, runs: Sequence[Run], pairs: Sequence[Sequence[AccuracyPair]]) -> tuple[str, ...]:
    if not runs:
        return ("No runs.",)
    sizes = sorted({side.estimate.n for row in pairs for pair in row for side in pair.sides if side.estimate})
    outcomes = []
    if diverged := sum(run.diverged for run in runs):
        lost = "the loss stopped being a number; the accuracy is what was left."
        outcomes.append(f"† {count(diverged, 'run')} diverged: {lost}")
    if untested := sum(run.test_acc is None for run in runs):
        outcomes.append(
            f"{count(untested, 'run')} without test accuracy: bnlab fit does not test. bnlab study does, and records "
            "it; bnlab test --ckpt_path RUN/checkpoints/last.ckpt prints it."
        )
    return (
        "V vanilla, B batch norm, with the thesis's values in brackets or beneath; the higher of both is bold. Mean ± "
        f"95 % t-interval over seeds, n = {', '.join(map(str, sizes)) or 0} a cell; without ±, n = 1.",
        "B − V: agree and differ compare its sign with the thesis's. Within the interval: 0 is, so it has no sign; the "
        "interval is Welch's over seeds, or for n = 1 that of the finite test set alone, which no seeds can narrow.",
        *outcomes,
        *shared_changes_note(collection),
        *provenance(runs),
    )


def _record(pair: AccuracyPair) -> Mapping[str, object]:
    line, name = pair.line, thesis_experiment(pair.line.experiment, pair.line.architecture)
    return {
        "architecture": line.architecture,
        "experiment": line.experiment,
        "parameter": EXPERIMENTS[name].parameter if name else "",
        "value": EXPERIMENTS[name].value if name else "",
        "changes": changes_words(line.changes),
        "batch_size": line.batch_size,
        "dataset": pair.dataset,
        **side_values(pair.sides, "percent", diverged=True),
        **estimate_values("difference", "difference_interval", pair.gain),
        "interval_from": pair.gain.basis if pair.gain else None,
        "difference_thesis": pair.thesis_gain,
        "sign": pair.verdict,
    }
