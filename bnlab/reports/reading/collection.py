"""All runs below some folders, sorted into the cells of the thesis's tables."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bnlab.errors import InputError
from bnlab.reports.reading.run import Changes, Run, UnreadableRunError, changes_words, clean, read_run
from bnlab.reports.thesis.experiments import BATCH_SIZE, BATCH_SIZES, EXPERIMENTS, dataset_order, thesis_experiment


@dataclass(frozen=True)
class LeftOut:
    """A run that does not count, and why."""

    folder: Path
    reason: str


@dataclass(frozen=True)
class Line:
    """The settings of a run but for dataset, batch norm and seed: a row of a table, a figure of its own."""

    architecture: str
    experiment: str
    changes: Changes = ()  # beyond those that all runs share
    batch_size: int = BATCH_SIZE

    @property
    def thesis_experiment(self) -> str | None:
        """The thesis's experiment that it repeats; None if it changes something."""
        return None if self.changes else thesis_experiment(self.experiment, self.architecture)

    @property
    def is_baseline(self) -> bool:
        """Whether it is the thesis's baseline (ReLU), with any batch size."""
        return self.thesis_experiment == "relu"

    @property
    def words(self) -> str:
        """Its name among the lines of its architecture: `ReLU`, or `mlp_relu, model.lr=0.1, batch 32`."""
        name = self.thesis_experiment
        parts = [EXPERIMENTS[name].value if name else self.experiment]
        parts += [changes_words(self.changes)] if self.changes else []
        parts += [f"batch {self.batch_size}"] if self.batch_size != BATCH_SIZE else []
        return ", ".join(parts)


def baseline(architecture: str, batch_size: int) -> Line:
    """The line of the thesis's baseline with a batch size."""
    return Line(architecture, f"{architecture}_relu", (), batch_size)


RunsByDataset = Mapping[str, tuple[Sequence[Run], Sequence[Run]]]  # of one line: vanilla, batch norm


@dataclass(frozen=True)
class Collection:
    """Runs that ended, at most one for each setting and seed, and those left out."""

    root: Path  # the deepest folder that holds all runs; run folders are shown relative to it
    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...] = ()

    @cached_property
    def _cells(self) -> dict[tuple[Line, str, bool], list[Run]]:
        cells: dict[tuple[Line, str, bool], list[Run]] = {}
        for run in sorted(self.runs, key=lambda run: (-1 if run.seed is None else run.seed, str(run.folder))):
            changes = tuple(change for change in run.changes if change not in self.shared_changes)
            line = Line(run.architecture, run.experiment, changes, run.batch_size)
            cells.setdefault((line, run.dataset, run.batch_norm), []).append(run)
        return cells

    @cached_property
    def shared_changes(self) -> Changes:
        """Changes of the protocol that all runs share; changes of the model are never among them."""
        shared = set.intersection(*(set(run.changes) for run in self.runs)) if self.runs else set()
        return tuple(sorted(change for change in shared if not change[0].startswith("model.")))

    def cell(self, line: Line, dataset: str, batch_norm: bool) -> list[Run]:
        """The runs of a line on a dataset, with or without batch norm: one for each seed, by seed."""
        return list(self._cells.get((line, dataset, batch_norm), []))

    def sides(self, line: Line, dataset: str) -> tuple[list[Run], list[Run]]:
        """The two cells of a line on a dataset: vanilla, batch norm."""
        return self.cell(line, dataset, False), self.cell(line, dataset, True)

    def runs_of(self, lines: Iterable[Line], datasets: Sequence[str]) -> list[Run]:
        """All runs of some lines on some datasets."""
        return [run for line in lines for dataset in datasets for side in self.sides(line, dataset) for run in side]

    @property
    def architectures(self) -> list[str]:
        """Those that have runs, the MLP first."""
        return [name for name in ("mlp", "cnn") if any(run.architecture == name for run in self.runs)]

    @cached_property
    def lines(self) -> list[Line]:
        """All lines that have runs, in the order of the thesis's tables, the user's own last."""
        return sorted({line for line, _, _ in self._cells}, key=_line_order)

    def baseline_sizes(self, architecture: str) -> list[int]:
        """Batch sizes of the baseline's runs, and those of the thesis, in order."""
        found = {line.batch_size for line in self.lines if line.is_baseline and line.architecture == architecture}
        return sorted({*BATCH_SIZES, *found})

    def datasets(self, lines: Iterable[Line]) -> list[str]:
        """Labels of the datasets that some of the lines have runs for, in the order of the thesis's tables."""
        wanted = set(lines)
        return sorted({dataset for line, dataset, _ in self._cells if line in wanted}, key=dataset_order)

    def path(self, run: Run) -> str:
        """A run's folder for readers, relative to `root`."""
        return self._shown(run.folder)

    @property
    def left_out_lines(self) -> list[tuple[str, str]]:
        """Path and reason of each run that does not count, for readers."""
        return [(self._shown(one.folder), clean(one.reason)) for one in self.left_out]

    def _shown(self, folder: Path) -> str:
        inside = folder.is_relative_to(self.root)
        return clean((folder.relative_to(self.root) if inside else folder).as_posix())


def _line_order(line: Line) -> tuple[object, ...]:
    name = thesis_experiment(line.experiment, line.architecture)
    place = list(EXPERIMENTS).index(name) if name else len(EXPERIMENTS)
    return (line.architecture != "mlp", place, line.experiment, line.changes, line.batch_size)


def collect(folders: Sequence[str | Path]) -> Collection:
    """Read all runs below the folders.

    A run counts by its `result.json` (`bnlab study`) or, without one, its `run.yaml` (`bnlab fit`). Repetitions are not
    new seeds: of several runs with the same settings and seed, those with a test accuracy come first, and the last that
    ended counts. Broken, failed, unfinished and repeated runs are `left_out`.

    Raises:
        InputError: one of the folders does not exist or cannot be read.
    """
    if not folders:
        raise InputError("no folder of runs given; bnlab fit and bnlab study write theirs below tb_logs.")
    runs: dict[Path, Run] = {}
    left_out: dict[Path, LeftOut] = {}
    roots = [_existing(folder) for folder in folders]
    for root in roots:
        for folder in _run_folders(root, left_out):
            if folder in runs or folder in left_out:
                continue
            try:
                runs[folder] = read_run(folder)
            except UnreadableRunError as reason:
                left_out[folder] = LeftOut(folder, str(reason))
    counted = _without_repetitions(list(runs.values()), left_out)
    ordered = sorted(left_out.values(), key=lambda one: str(one.folder))
    return Collection(Path(os.path.commonpath(roots)), tuple(counted), tuple(ordered))


def _existing(folder: str | Path) -> Path:
    path = Path(folder)
    if not path.is_dir():
        what = "is no folder" if path.exists() else "does not exist"
        raise InputError(f"{clean(folder)} {what}; give folders that hold runs, as tb_logs does.")
    if not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"{clean(folder)} cannot be read: no permission.")
    return path.resolve()


def _run_folders(root: Path, left_out: dict[Path, LeftOut]) -> list[Path]:
    """Folders that hold a run; folders below these are not searched, and unreadable ones go to `left_out`."""

    def note(error: OSError) -> None:
        folder = Path(str(error.filename))
        left_out[folder] = LeftOut(folder, f"the folder cannot be read: {error.strerror}")

    found = []
    for place, below, files in os.walk(root, onerror=note):
        below.sort()
        if "result.json" in files or "run.yaml" in files:
            found.append(Path(place))
            below.clear()
    return found


def _without_repetitions(runs: list[Run], left_out: dict[Path, LeftOut]) -> list[Run]:
    best: dict[object, Run] = {}
    for run in sorted(runs, key=lambda run: (run.test_acc is not None, run.ended, str(run.folder)), reverse=True):
        setting = (run.architecture, run.experiment, run.dataset, run.batch_norm, run.batch_size, run.changes)
        key = (*setting, run.folder if run.seed is None else run.seed)
        if key in best:
            reason = f"the same setting and seed as {clean(best[key].folder)}, which counts"
            left_out[run.folder] = LeftOut(run.folder, reason)
        else:
            best[key] = run
    return sorted(best.values(), key=lambda run: str(run.folder))
