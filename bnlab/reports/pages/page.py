"""The report's pages: `report.md`, and `report.html` without other files, network or scripts.

All text of runs is escaped: by Jinja's autoescape in HTML, by the filter `md` in Markdown. In HTML a content security
policy forbids requests and scripts besides.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import resources
from itertools import groupby
from typing import Any

from bnlab import __version__
from bnlab.reports.claims.claim import Conclusion
from bnlab.reports.figures.plans import FigurePlan
from bnlab.reports.pages.conclusions import needed, run_names
from bnlab.reports.pages.overview import Overview
from bnlab.reports.reading.collection import Collection
from bnlab.reports.tables.notes import provenance, shared_changes_note
from bnlab.reports.tables.table import Table, escape, to_markdown
from bnlab.reports.thesis.numbers import SOURCE

Addresses = Sequence[tuple[str, str]]  # a file's kind, and its address relative to the page

_SMALLEST = 0.72  # of a figure's own width


@dataclass(frozen=True)
class DrawnFigure:
    """A figure's plan, its picture, and its files."""

    plan: FigurePlan
    picture: bytes  # within the page; SVG or PNG
    size: tuple[int, int]  # CSS pixels
    files: Addresses

    @property
    def least_width(self) -> int:
        """The width below which a screen scrolls the picture."""
        return round(_SMALLEST * self.size[0])

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        kind = "png" if self.picture.startswith(b"\x89PNG") else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.picture).decode()}"


@dataclass(frozen=True)
class Page:
    """Everything that a page shows, in its order."""

    title: str  # the heading
    collection: Collection  # the runs
    overview: Overview  # the counts
    conclusions: Sequence[Conclusion]  # all that were judged
    tables: Sequence[Table]  # those with the thesis's numbers
    runs: Table  # the table of every run, with links
    figures: Sequence[DrawnFigure]  # those drawn; neighbours of one section stand under one heading
    table_files: Mapping[str, Addresses]  # the files of each table, by its name
    problems: Sequence[tuple[str, str]]  # paths of runs whose records could not be read, with the reason

    def render(self, kind: str) -> str:
        """The page as `md` or `html`."""
        return str(_environment().get_template(f"report.{kind}.jinja").render(self._values()))

    def _values(self) -> dict[str, Any]:
        """What the templates show."""
        return {
            "title": self.title,
            "made": datetime.now(timezone.utc).date().isoformat(),
            "version": __version__,
            "source": SOURCE,
            "overview": self.overview.sentences,
            "warnings": shared_changes_note(self.collection),
            "tally": [(verdict, number) for verdict, number in self.overview.verdicts.items() if number],
            "conclusions": [(one, run_names(self.collection, one)) for one in self.conclusions if one.findings],
            "missing": [(one.claim, needed(one)) for one in self.conclusions if not one.findings],
            "tables": [(table, _short(table.title), self.table_files[table.name]) for table in self.tables],
            "runs": self.runs,
            "sections": _sections(self.figures),
            "left_out": self.collection.left_out_lines,
            "problems": self.problems,
            "provenance": provenance(self.collection.runs),
        }


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("bnlab.reports.pages"),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": escape, "table": to_markdown}
    style = resources.files("bnlab.reports.pages").joinpath("templates/report.css").read_text(encoding="utf-8")
    environment.globals["css"] = Markup(style)  # unescaped: it is our own file
    return environment


def _short(title: str) -> str:
    """A table's name in the contents: that of the thesis's table or figure, if there is one."""
    thesis = re.search(r"\(thesis: (.+)\)$", title)
    return thesis[1][0].upper() + thesis[1][1:] if thesis else title


def _sections(figures: Sequence[DrawnFigure]) -> list[tuple[str, str, list[DrawnFigure]]]:
    """Title, name in the contents, and figures of each section."""
    grouped = [(title, list(some)) for title, some in groupby(figures, key=lambda figure: figure.plan.section)]
    return [(title, some[0].plan.short or title, some) for title, some in grouped]
