"""The report on a collection of runs: tables, figures and pages in a folder."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import quote

from bnlab.errors import InputError
from bnlab.files.durable_files import write_durably
from bnlab.reports.claims.catalogue import judge_all
from bnlab.reports.claims.claim import Conclusion
from bnlab.reports.figures.plans import GRADIENT, FigurePlan, plan_figures
from bnlab.reports.figures.style import png, svg
from bnlab.reports.pages.conclusions import conclusions_table
from bnlab.reports.pages.overview import Overview, overview
from bnlab.reports.pages.page import Addresses, DrawnFigure, render
from bnlab.reports.reading.collection import Collection
from bnlab.reports.reading.curves import CurvesOf, read_curves
from bnlab.reports.reading.run import clean
from bnlab.reports.tables.accuracy_table import accuracy_table, batch_size_table
from bnlab.reports.tables.runs_table import runs_table
from bnlab.reports.tables.table import Table, to_csv, to_markdown
from bnlab.reports.tables.time_table import time_table

FORMATS = ("md", "csv", "html", "png", "svg")
_SAVE = {"png": png, "svg": svg}
_LARGEST_SVG = 120_000  # bytes of a picture within the page; a larger one is a PNG there if that is smaller


@dataclass(frozen=True)
class Report:
    """A written report: its folder, files and results."""

    folder: Path
    overview: Overview
    tables: tuple[Table, ...]
    conclusions: tuple[Conclusion, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()  # on figures that could not be drawn


def main_tables(collection: Collection) -> list[Table]:
    """The thesis's tables for the nets that have runs: accuracies, accuracies by batch size if it varies, and times."""
    kinds = collection.architectures
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
    """Write tables, figures, `report.md` and `report.html` into a folder, which is made if it does not exist.

    Files of earlier reports with the same names are replaced, one at a time; others are left alone.

    Args:
        collection: the runs.
        folder: the report's.
        formats: some of `FORMATS`; png and svg are files of figures, html holds its figures within itself.
        quantity: that of the heatmaps of batch norm against vanilla.
        title: the heading; without one the name of the folder that holds all runs.
        progress: a function that is called with the name of each step.

    Raises:
        InputError: there are no runs, or the folder cannot be written.
    """
    wanted = frozenset(formats)
    if unknown := sorted(wanted - set(FORMATS)):
        raise InputError(f"unknown format {', '.join(map(clean, unknown))}; there are {', '.join(FORMATS)}.")
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


def check_runs(collection: Collection) -> None:
    """Raise InputError if there are no runs to report on, with the reason as far as it is known."""
    if collection.runs:
        return
    where = f"no run that ended lies below {clean(collection.root)}"
    text = f"{where}: runs have a result.json (bnlab study) or a run.yaml (bnlab fit)."
    if collection.left_out:
        first = collection.left_out[0]
        text += f" {len(collection.left_out)} left out, the first {clean(first.folder)}: {clean(first.reason)}."
    raise InputError(text)


@dataclass
class _Writer:
    """A report in the making, and the files written so far."""

    collection: Collection
    folder: Path
    formats: frozenset[str]
    curves: CurvesOf
    progress: Callable[[str], None]
    files: list[Path] = field(default_factory=list)

    def write(self, quantity: str, title: str) -> Report:
        """Write the tables, then the figures, and last the pages that link to them."""
        collection = self.collection
        tables = main_tables(collection)
        self.progress("judging the thesis's conclusions")
        conclusions = judge_all(collection, curves=self.curves)
        runs = runs_table(collection, {run: address(run.folder, self.folder) for run in collection.runs})
        listed = [*tables, runs, conclusions_table(conclusions)]
        counts = overview(collection, conclusions)
        drawn = collection.runs if "html" in self.formats else ()
        shown = {
            "title": title,
            "collection": collection,
            "overview": counts,
            "conclusions": conclusions,
            "tables": tables,
            "runs": runs,
            "table_files": {table.name: self._write_table(table) for table in listed},
            "figures": (figures := self._figures(quantity) if self.formats - {"md", "csv"} else []),
            "problems": [(collection.path(run), why) for run in drawn if (why := self.curves(run).problem)],
        }
        self._put("report", {kind: render(kind, **shown) for kind in ("md", "html") if kind in self.formats})
        notes: tuple[str, ...] = ()
        if figures and not any(figure.plan.name.startswith("difference_") for figure in figures):
            notes = (
                f"no heatmap of batch norm against vanilla: no pair of runs has recorded {clean(quantity)} of layers",
            )
        return Report(self.folder, counts, tuple(tables), tuple(conclusions), tuple(self.files), notes)

    def _write_table(self, table: Table) -> Addresses:
        renders = {"csv": to_csv, "md": to_markdown}
        contents = {kind: render(table) for kind, render in renders.items() if kind in self.formats}
        return self._put(f"tables/{table.name}", contents)

    def _figures(self, quantity: str) -> list[DrawnFigure]:
        plans = plan_figures(self.collection, self.curves, quantity)
        drawn = []
        for number, plan in enumerate(plans, 1):
            self.progress(f"figure {number} of {len(plans)}")
            if (figure := self._draw(plan)) is not None:
                drawn.append(figure)
        return drawn

    def _draw(self, plan: FigurePlan) -> DrawnFigure | None:
        figure = plan.draw()
        if figure is None:
            return None
        pictures = {kind: save(figure) for kind, save in _SAVE.items() if kind in self.formats}
        shown = b""
        if "html" in self.formats:
            shown = pictures.get("svg") or svg(figure)
            if len(shown) > _LARGEST_SVG:
                shown = min(shown, pictures.get("png") or png(figure), key=len)
        width, height = (round(96 * inches) for inches in figure.get_size_inches())
        return DrawnFigure(plan, shown, (width, height), self._put(f"figures/{plan.name}", pictures))

    def _put(self, stem: str, contents: Mapping[str, bytes | str]) -> Addresses:
        """Write a file of each kind; names and addresses of the files."""
        paths = {kind: self.folder / f"{stem}.{kind}" for kind in contents}
        for kind, path in paths.items():
            write_durably(path, contents[kind])
            self.files.append(path)
        return [(kind.upper(), address(path, self.folder)) for kind, path in paths.items()]


def address(target: Path, folder: Path) -> str:
    """A link from a page in `folder`: relative, quoted, and never taken for another scheme."""
    relative = os.path.relpath(target, folder)
    return "./" + quote(os.fsencode(relative))
