"""`report.html`: one page that needs nothing beside it, no network and no script.

Everything that comes from runs goes through Jinja's autoescape; a content security policy forbids requests and scripts
besides.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from bnlab import __version__
from bnlab.reports import reference
from bnlab.reports.claims.verdict import Conclusion
from bnlab.reports.collection import Collection
from bnlab.reports.conclusions import needed, run_names
from bnlab.reports.figures import FigurePlan
from bnlab.reports.overview import Overview, left_out_lines
from bnlab.reports.provenance import provenance, shared_changes_note
from bnlab.reports.table import Table

_SMALLEST = 0.72  # of a figure's own width: narrower screens scroll it


@dataclass(frozen=True)
class DrawnFigure:
    """A figure's plan, its picture, and the addresses of its files, relative to the page."""

    plan: FigurePlan
    picture: bytes  # within the page; SVG or PNG
    size: tuple[int, int]  # CSS pixels
    files: tuple[tuple[str, str], ...] = ()

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        kind = "png" if self.picture.startswith(b"\x89PNG") else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.picture).decode()}"


def html_page(
    title: str,
    made: str,
    collection: Collection,
    overview: Overview,
    conclusions: Sequence[Conclusion],
    tables: Sequence[Table],
    runs: Table,
    figures: Sequence[DrawnFigure],
    problems: Sequence[tuple[str, str]] = (),
    table_files: Mapping[str, Sequence[tuple[str, str]]] | None = None,
) -> str:
    """The whole page.

    Args:
        title: its heading.
        made: the date.
        collection: the runs.
        overview: their counts.
        conclusions: all that were judged.
        tables: with thesis values, in order.
        runs: every run, with links.
        figures: in order; neighbours of one section stand under one heading.
        problems: runs whose records could not be read, and why.
        table_files: by table, the names and addresses of its files.
    """
    files = table_files or {}
    return str(
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            made=made,
            version=__version__,
            source=reference.SOURCE,
            css=_css(),
            overview=overview.sentences(),
            warnings=shared_changes_note(collection.shared_changes),
            tally=[(verdict, number) for verdict, number in overview.verdicts.items() if number],
            conclusions=[_conclusion(collection, one) for one in conclusions if one.findings],
            missing=[
                {"statement": one.claim.statement, "where": one.claim.where, "needs": needed(one)}
                for one in conclusions
                if not one.findings
            ],
            tables=[_table(table, files.get(table.name, ())) for table in tables],
            runs=_table(runs, ()),
            sections=_sections(figures),
            left_out=left_out_lines(collection),
            problems=problems,
            provenance=provenance(collection.runs),
        )
    )


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("bnlab.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _css() -> Any:
    """Our own file, so it is safe to be left as it is."""
    from markupsafe import Markup

    return Markup(resources.files("bnlab.reports").joinpath("templates/report.css").read_text(encoding="utf-8"))


def _conclusion(collection: Collection, one: Conclusion) -> dict[str, Any]:
    return {
        "verdict": one.verdict,
        "statement": one.claim.statement,
        "quote": one.claim.quote,
        "where": one.claim.where,
        "findings": one.findings,
        "reason": one.reason,
        "runs": run_names(collection, one),
    }


def _table(table: Table, files: Sequence[tuple[str, str]]) -> dict[str, Any]:
    thesis = re.search(r"\(thesis: (.+)\)$", table.title)
    return {
        "name": table.name,
        "short": thesis[1][0].upper() + thesis[1][1:] if thesis else table.title,
        "title": table.title,
        "groups": table.groups if len(table.groups) > 1 else (),
        "header": table.header,
        "rows": table.rows,
        "heads": table.heads,
        "notes": table.notes,
        "files": files,
    }


def _sections(figures: Sequence[DrawnFigure]) -> list[dict[str, Any]]:
    sections: list[dict[str, Any]] = []
    for figure in figures:
        if not sections or sections[-1]["title"] != figure.plan.section:
            short = figure.plan.short or figure.plan.section
            sections.append(
                {"id": f"figures-{len(sections) + 1}", "title": figure.plan.section, "short": short, "figures": []}
            )
        sections[-1]["figures"].append(
            {
                "name": figure.plan.name,
                "title": figure.plan.title,
                "caption": figure.plan.caption,
                "source": figure.source,
                "width": figure.size[0],
                "height": figure.size[1],
                "least_width": round(_SMALLEST * figure.size[0]),
                "files": figure.files,
            }
        )
    return sections
