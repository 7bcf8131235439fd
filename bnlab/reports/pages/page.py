"""The report's pages: `report.md`, and `report.html` without other files, network or scripts.

All text of runs is escaped: by Jinja's autoescape in HTML, by the filter `md` in Markdown. In HTML a content security
policy forbids requests and scripts besides.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import resources
from itertools import groupby
from typing import Any

from bnlab import __version__
from bnlab.reports.figures.plans import FigurePlan
from bnlab.reports.pages.conclusions import needed, run_names
from bnlab.reports.tables.notes import provenance, shared_changes_note
from bnlab.reports.tables.table import escape, to_markdown
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


def render(kind: str, **shown: Any) -> str:
    """The page as `md` or `html`, of what its template names."""
    made = datetime.now(timezone.utc).date().isoformat()
    return str(_environment().get_template(f"report.{kind}.jinja").render(shown, made=made))


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
    environment.filters |= {"md": escape, "table": to_markdown, "short": _short, "sections": _sections}
    environment.globals |= {"version": __version__, "source": SOURCE, "needed": needed, "run_names": run_names}
    environment.globals |= {"provenance": provenance, "shared_changes_note": shared_changes_note}
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
