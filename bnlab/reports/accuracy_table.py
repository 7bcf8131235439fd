"""Tables of test accuracy: the thesis's B.1 and B.2, and by batch size what its figures 7.15 and 7.38 show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bnlab.reports.accuracy import Accuracy, Pair, compare
from bnlab.reports.collection import Collection, Line
from bnlab.reports.names import (
    BATCH_SIZE,
    DATASETS,
    EXPERIMENTS,
    dataset_title,
    thesis_dataset,
    thesis_experiment,
)
from bnlab.reports.provenance import count, provenance, shared_changes_note
from bnlab.reports.runs import Run, changes_words
from bnlab.reports.table import MISSING, Cell, Table, Tone, absent_note, estimate_words, rounded
from bnlab.reports.times import baseline, baseline_sizes, is_baseline

_TABLES = {"mlp": "B.1", "cnn": "B.2"}
_BATCH_FIGURES = {"mlp": "7.15", "cnn": "7.38"}
_TONES: dict[str, Tone] = {"agree": "agree", "differ": "differ", "within the interval": "within"}


def accuracy_table(collection: Collection, architecture: str) -> Table:
    """Table B.1 (`mlp`) or B.2 (`cnn`): a row for each experiment, ours beside the thesis's.

    The thesis's nine experiments always have a row; runs that change something and the user's own experiments have
    theirs below. Datasets of the thesis without any run have no columns; the records (for CSV) have them too.
    """
    lines = accuracy_lines(collection, architecture)
    datasets = collection.datasets(lines)
    pairs = [[compare(collection, line, dataset) for dataset in datasets] for line in lines]
    rows = tuple((*_row_heads(line), *_pair_cells(row)) for line, row in zip(lines, pairs, strict=True))
    runs = _runs(collection, lines, datasets)
    absent = [name for name in DATASETS if name not in map(thesis_dataset, datasets)]
    records = [_record(pair) for row in pairs for pair in row]
    records += [_record(compare(collection, line, name)) for line in lines if line.thesis_experiment for name in absent]
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

    Has the datasets with runs of two sizes or more; None where there is none.
    """
    lines = [baseline(architecture, size) for size in baseline_sizes(collection, architecture)]
    datasets = [dataset for dataset in collection.datasets(lines) if _varied(collection, lines, dataset)]
    if not datasets:
        return None
    pairs = [[compare(collection, line, dataset) for dataset in datasets] for line in lines]
    rows = tuple((Cell(str(line.batch_size)), *_pair_cells(row)) for line, row in zip(lines, pairs, strict=True))
    figure = _BATCH_FIGURES[architecture]
    return Table(
        name=f"figure_{figure.replace('.', '_')}_batch_size_{architecture}",
        title=f"Test accuracy of the {architecture.upper()} by batch size in percent, ReLU (thesis: figure {figure})",
        groups=(("", 1), *((dataset_title(dataset), 3) for dataset in datasets)),
        header=("Batch size", *(("V", "B", "B − V") * len(datasets))),
        rows=rows,
        heads=1,
        notes=(
            *_notes(collection, _runs(collection, lines, datasets), pairs),
            "The thesis draws these accuracies without giving the numbers; those at 64 are in its tables.",
        ),
        records=tuple(_record(pair) for row in pairs for pair in row),
    )


def _varied(collection: Collection, lines: Sequence[Line], dataset: str) -> bool:
    known = [line for line in lines if any(collection.cell(line, dataset, flag) for flag in (False, True))]
    return len(known) > 1


def accuracy_lines(collection: Collection, architecture: str) -> list[Line]:
    """The rows of table B.1 or B.2."""
    thesis = [Line(architecture, f"{architecture}_{name}") for name in EXPERIMENTS]
    others = [
        line
        for line in collection.lines
        if line.architecture == architecture and line not in thesis and not is_baseline(line, architecture)
    ]
    return thesis + others


def line_words(line: Line) -> str:
    """What sets a line apart from the others of its architecture: `ReLU`, or `mlp_relu, model.lr=0.1, batch 32`."""
    name = thesis_experiment(line.experiment, line.architecture)
    parts = [EXPERIMENTS[name].value if name and not line.changes else line.experiment]
    parts += [changes_words(line.changes)] if line.changes else []
    parts += [f"batch {line.batch_size}"] if line.batch_size != BATCH_SIZE else []
    return ", ".join(parts)


def _row_heads(line: Line) -> tuple[Cell, Cell]:
    name = thesis_experiment(line.experiment, line.architecture)
    return Cell(EXPERIMENTS[name].parameter if name else "Not in the thesis"), Cell(line_words(line))


def _pair_cells(pairs: Iterable[Pair]) -> Iterable[Cell]:
    for pair in pairs:
        better = pair.gain.value if pair.gain else 0.0
        yield _accuracy_cell(pair.vanilla, pair.thesis_vanilla, better < 0)
        yield _accuracy_cell(pair.batch_norm, pair.thesis_batch_norm, better > 0)
        text = estimate_words(pair.gain, signed=True) if pair.gain else MISSING
        thesis = "" if pair.thesis_gain is None else f"{pair.thesis_gain:+.1f}"
        verdict = pair.verdict or ""
        yield Cell(text, thesis, verdict, _TONES.get(verdict, ""))


def _accuracy_cell(found: Accuracy, thesis: float | None, better: bool) -> Cell:
    text = estimate_words(found.estimate) if found.estimate else MISSING
    dagger = " †" if found.diverged and found.estimate else ""
    return Cell(text + dagger, "" if thesis is None else f"{thesis:.1f}", strong=better)


def _runs(collection: Collection, lines: Iterable[Line], datasets: Sequence[str]) -> list[Run]:
    return [
        run
        for line in lines
        for dataset in datasets
        for flag in (False, True)
        for run in collection.cell(line, dataset, flag)
    ]


def _notes(collection: Collection, runs: Sequence[Run], pairs: Sequence[Sequence[Pair]]) -> tuple[str, ...]:
    if not runs:
        return ("No runs.",)
    cells = [cell for row in pairs for pair in row for cell in (pair.vanilla, pair.batch_norm)]
    sizes = sorted({cell.estimate.n for cell in cells if cell.estimate})
    return (
        "V vanilla, B batch norm, with the thesis's values in brackets or beneath; the higher of both is bold. Mean ± "
        f"95 % t-interval over seeds, n = {', '.join(map(str, sizes)) or 0} a cell; without ±, n = 1.",
        "B − V: agree and differ compare its sign with the thesis's. Within the interval: 0 is, so it has no sign; the "
        "interval is Welch's over seeds, or for n = 1 that of the finite test set alone, which no seeds can narrow.",
        *(_diverged_note(runs)),
        *(_untested_note(runs)),
        *shared_changes_note(collection.shared_changes),
        *provenance(runs),
    )


def _diverged_note(runs: Sequence[Run]) -> tuple[str, ...]:
    diverged = sum(run.diverged for run in runs)
    if not diverged:
        return ()
    return (f"† {count(diverged, 'run')} diverged: the loss stopped being a number; the accuracy is what was left.",)


def _untested_note(runs: Sequence[Run]) -> tuple[str, ...]:
    untested = sum(run.test_acc is None for run in runs)
    if not untested:
        return ()
    return (
        f"{count(untested, 'run')} without test accuracy: bnlab fit does not test. bnlab study does, and records it; "
        "bnlab test --ckpt_path RUN/checkpoints/last.ckpt prints it.",
    )


def _record(pair: Pair) -> Mapping[str, object]:
    line, name = pair.line, thesis_experiment(pair.line.experiment, pair.line.architecture)
    record: dict[str, object] = {
        "architecture": line.architecture,
        "experiment": line.experiment,
        "parameter": EXPERIMENTS[name].parameter if name else "",
        "value": EXPERIMENTS[name].value if name else "",
        "changes": changes_words(line.changes),
        "batch_size": line.batch_size,
        "dataset": pair.dataset,
    }
    for side, found, thesis in (
        ("vanilla", pair.vanilla, pair.thesis_vanilla),
        ("batch_norm", pair.batch_norm, pair.thesis_batch_norm),
    ):
        estimate = found.estimate
        record |= {
            f"{side}_percent": rounded(estimate.value) if estimate else None,
            f"{side}_interval": rounded(estimate.half_width) if estimate else None,
            f"{side}_n": estimate.n if estimate else 0,
            f"{side}_diverged": found.diverged,
            f"{side}_thesis": thesis,
        }
    return record | {
        "difference": rounded(pair.gain.value) if pair.gain else None,
        "difference_interval": rounded(pair.gain.half_width) if pair.gain else None,
        "interval_from": pair.gain.basis if pair.gain else None,
        "difference_thesis": pair.thesis_gain,
        "sign": pair.verdict,
    }
