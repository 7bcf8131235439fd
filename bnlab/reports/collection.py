"""All runs below some folders, and how a report asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bnlab.errors import InputError
from bnlab.reports.names import BATCH_SIZE, EXPERIMENTS, dataset_order, thesis_experiment
from bnlab.reports.run_files import UnreadableRunError, clean
from bnlab.reports.runs import Changes, Run, read_run


@dataclass(frozen=True)
class LeftOut:
    """A run that does not count, and why."""

    folder: Path
    reason: str


@dataclass(frozen=True)
class Line:
    """What is trained, apart from dataset, batch norm and seed: a row of a table, a figure of its own."""

    architecture: str
    experiment: str
    changes: Changes = ()  # beyond those that all runs share
    batch_size: int = BATCH_SIZE

    @property
    def thesis_experiment(self) -> str | None:
        """The thesis's experiment that it repeats, None if it changes something."""
        return None if self.changes else thesis_experiment(self.experiment, self.architecture)


@dataclass(frozen=True)
class Collection:
    """Runs that ended, at most one for each setting and seed, and what was left out.

    Attributes:
        root: the deepest folder that all runs lie in; run folders are shown relative to it.
    """

    root: Path
    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...] = ()
    _cells: dict[tuple[Line, str, bool], list[Run]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Sort the runs into cells."""
        for run in sorted(self.runs, key=lambda run: (-1 if run.seed is None else run.seed, str(run.folder))):
            self._cells.setdefault((self.line(run), run.dataset, run.batch_norm), []).append(run)

    @cached_property
    def shared_changes(self) -> Changes:
        """Changes of the protocol that all runs share; changes of the model always stand apart."""
        shared = set.intersection(*(set(run.changes) for run in self.runs)) if self.runs else set()
        return tuple(sorted(change for change in shared if not change[0].startswith("model.")))

    def line(self, run: Run) -> Line:
        """The line that a run belongs to."""
        changes = tuple(change for change in run.changes if change not in self.shared_changes)
        return Line(run.architecture, run.experiment, changes, run.batch_size)

    def cell(self, line: Line, dataset: str, batch_norm: bool) -> list[Run]:
        """The runs of a line on a dataset, with or without batch norm: one for each seed, by seed."""
        return list(self._cells.get((line, dataset, batch_norm), []))

    @cached_property
    def lines(self) -> list[Line]:
        """All lines that have runs, in the order of the thesis's tables, the user's own last."""
        return sorted({line for line, _, _ in self._cells}, key=_line_order)

    def datasets(self, lines: Iterable[Line]) -> list[str]:
        """Labels of the datasets that some of the lines have runs for, in the order of the thesis's tables."""
        wanted = set(lines)
        return sorted({dataset for line, dataset, _ in self._cells if line in wanted}, key=dataset_order)

    def path(self, run: Run) -> str:
        """A run's folder for people, relative to `root`."""
        return shown_path(run.folder, self.root)


def _line_order(line: Line) -> tuple[object, ...]:
    name = thesis_experiment(line.experiment, line.architecture)
    place = list(EXPERIMENTS).index(name) if name else len(EXPERIMENTS)
    return (line.architecture != "mlp", place, line.experiment, line.changes, line.batch_size)


def shown_path(folder: Path, root: Path) -> str:
    """A folder for people, relative to `root` where it lies within."""
    return clean(folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.as_posix())


def collect(folders: Sequence[str | Path]) -> Collection:
    """Read all runs below the folders.

    Counts `result.json` of `bnlab study` and, without one, `run.yaml` of `bnlab fit`. Of several runs with the same
    setting and seed the one with a test accuracy that ended last counts: repetitions are not new seeds. What is broken,
    failed, unfinished or repeated is `left_out`.

    Raises:
        InputError: one of the folders is none, or cannot be read.
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
    """Folders with a result or a record, without what lies below them; unreadable folders go to `left_out`."""

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
