"""Everything that `bnlab report` writes for a collection of runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from bnlab.durable_files import write_durably
from bnlab.errors import InputError
from bnlab.reports.accuracy_table import accuracy_table, batch_size_table
from bnlab.reports.claims import Conclusion, judge_all
from bnlab.reports.collection import Collection
from bnlab.reports.conclusions import conclusions_table
from bnlab.reports.curves import Curves, read_curves
from bnlab.reports.figures import GRADIENT, FigurePlan, plan_figures
from bnlab.reports.files import address
from bnlab.reports.html_page import DrawnFigure, html_page
from bnlab.reports.markdown_page import markdown_page
from bnlab.reports.overview import Overview, architectures, overview, runs_table
from bnlab.reports.run_files import clean
from bnlab.reports.runs import Run
from bnlab.reports.style import png, svg
from bnlab.reports.table import Table, to_csv, to_markdown
from bnlab.reports.time_table import time_table

FORMATS = ("md", "csv", "html", "png", "svg")
_SAVE = {"png": png, "svg": svg}
_LARGEST_SVG = 120_000  # bytes of a picture within the page; a larger one may stand there as PNG


@dataclass(frozen=True)
class Report:
    """What was found and written."""

    folder: Path
    overview: Overview
    tables: tuple[Table, ...]
    conclusions: tuple[Conclusion, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()  # what could not be drawn


def main_tables(collection: Collection) -> list[Table]:
    """The thesis's tables for the nets that have runs: accuracy, also by batch size where it was varied, and time."""
    kinds = architectures(collection)
    swept = [batch_size_table(collection, architecture) for architecture in kinds]
    return [
        *(accuracy_table(collection, architecture) for architecture in kinds),
        *(table for table in swept if table is not None),
        *(time_table(collection, architecture) for architecture in kinds),
    ]


def write_report(
    collection: Collection,
    folder: Path,
    formats: Iterable[str] = FORMATS,
    quantity: str = GRADIENT,
    title: str = "",
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Write tables, figures, `report.md` and `report.html` into a folder, which is made where there is none.

    Files of earlier reports that have the same names are replaced, one at a time; others are left alone.

    Args:
        collection: the runs.
        folder: where to.
        formats: some of `FORMATS`; png and svg are the figures' files, which html has within itself.
        quantity: of the heatmaps of batch norm against vanilla.
        title: of the report; the folder's name without one.
        progress: is told what comes next.

    Raises:
        InputError: there are no runs, or the folder cannot be written.
    """
    wanted = _checked(formats)
    check_runs(collection)
    curves = cache(lambda run: read_curves(run.folder, dict.fromkeys([GRADIENT, quantity])))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writer = _Writer(collection, folder.resolve(), wanted, curves, progress)
        return writer.write(quantity, title or collection.root.name)
    except OSError as error:
        raise InputError(
            f"the report's folder {clean(folder)} cannot be written ({error.strerror or error}); give another one with "
            "--output."
        ) from error


def _checked(formats: Iterable[str]) -> frozenset[str]:
    wanted = frozenset(formats)
    unknown = sorted(wanted - set(FORMATS))
    if unknown:
        raise InputError(f"unknown format {', '.join(map(clean, unknown))}; there are {', '.join(FORMATS)}.")
    return wanted


def check_runs(collection: Collection) -> None:
    """Raise InputError where nothing can be reported, and say why as far as it is known."""
    if collection.runs:
        return
    text = (
        f"no run that ended lies below {clean(collection.root)}: runs have a result.json (bnlab study) or a run.yaml "
    )
    text += "(bnlab fit)."
    if collection.left_out:
        first = collection.left_out[0]
        text += f" {len(collection.left_out)} left out, the first {clean(first.folder)}: {clean(first.reason)}."
    raise InputError(text)


class _Writer:
    """Writes one report and remembers its files."""

    def __init__(
        self,
        collection: Collection,
        folder: Path,
        formats: frozenset[str],
        curves: Callable[[Run], Curves],
        progress: Callable[[str], None],
    ) -> None:
        self._collection = collection
        self._folder = folder
        self._formats = formats
        self._curves = curves
        self._progress = progress
        self._files: list[Path] = []

    def write(self, quantity: str, title: str) -> Report:
        """Tables first, then figures, and last the pages that link to them."""
        collection = self._collection
        tables = main_tables(collection)
        self._progress("judging the thesis's conclusions")
        conclusions = judge_all(collection, curves=self._curves)
        counts = overview(collection, conclusions)
        runs = runs_table(collection, {run: address(run.folder, self._folder) for run in collection.runs})
        listed = [*tables, runs, conclusions_table(collection, conclusions)]
        table_files = {table.name: self._write_table(table) for table in listed}
        figures = self._figures(quantity) if self._formats - {"md", "csv"} else []
        made = datetime.now(timezone.utc).date().isoformat()
        if "md" in self._formats:
            page = markdown_page(title, made, collection, counts, conclusions, tables, runs, figures)
            self._put(self._folder / "report.md", page)
        if "html" in self._formats:
            problems = [
                (collection.path(run), problem) for run in collection.runs if (problem := self._curves(run).problem)
            ]
            page = html_page(title, made, collection, counts, conclusions, tables, runs, figures, problems, table_files)
            self._put(self._folder / "report.html", page)
        notes: tuple[str, ...] = ()
        if figures and not any(figure.plan.name.startswith("difference_") for figure in figures):
            notes = (
                f"no heatmap of batch norm against vanilla: no pair of runs has recorded {clean(quantity)} of layers",
            )
        return Report(self._folder, counts, tuple(tables), tuple(conclusions), tuple(self._files), notes)

    def _write_table(self, table: Table) -> list[tuple[str, str]]:
        """Names and addresses of its files."""
        written = []
        for kind, render in (("csv", to_csv), ("md", to_markdown)):
            if kind in self._formats:
                path = self._folder / "tables" / f"{table.name}.{kind}"
                self._put(path, render(table))
                written.append((kind.upper(), address(path, self._folder)))
        return written

    def _figures(self, quantity: str) -> list[DrawnFigure]:
        plans = plan_figures(self._collection, self._curves, quantity)
        drawn = []
        for number, plan in enumerate(plans, 1):
            self._progress(f"figure {number} of {len(plans)}")
            figure = self._draw(plan)
            if figure is not None:
                drawn.append(figure)
        return drawn

    def _draw(self, plan: FigurePlan) -> DrawnFigure | None:
        figure = plan.draw()
        if figure is None:
            return None
        pictures = {kind: save(figure) for kind, save in _SAVE.items() if kind in self._formats}
        files = []
        for kind, content in pictures.items():
            path = self._folder / "figures" / f"{plan.name}.{kind}"
            self._put(path, content)
            files.append((kind.upper(), address(path, self._folder)))
        shown = b""
        if "html" in self._formats:
            shown = pictures.get("svg") or svg(figure)
            if len(shown) > _LARGEST_SVG:
                shown = min(shown, pictures.get("png") or png(figure), key=len)
        width, height = (round(96 * inches) for inches in figure.get_size_inches())
        return DrawnFigure(plan, shown, (width, height), tuple(files))

    def _put(self, path: Path, content: bytes | str) -> None:
        write_durably(path, content)
        self._files.append(path)


def default_folder(folders: Sequence[str | Path]) -> Path:
    """Where the report on some folders goes: `report` in the first."""
    return Path(os.fspath(folders[0])) / "report"
