"""`report.html`: one page without other files, network or scripts.

All text of runs goes through Jinja's autoescape; a content security policy forbids requests and scripts besides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from bnlab import __version__
from bnlab.reports.claims.claim import Conclusion
from bnlab.reports.pages.conclusions import needed, run_names
from bnlab.reports.pages.content import Addresses, Content, DrawnFigure
from bnlab.reports.reading.collection import Collection
from bnlab.reports.tables.notes import provenance, shared_changes_note
from bnlab.reports.tables.table import Table
from bnlab.reports.thesis.numbers import SOURCE

_SMALLEST = 0.72  # of a figure's own width; narrower screens scroll it


def html_page(content: Content) -> str:
    """The whole page."""
    collection = content.collection
    page = _environment().get_template("report.html.jinja")
    text = page.render(
        title=content.title,
        made=content.made,
        version=__version__,
        source=SOURCE,
        css=_css(),
        overview=content.overview.sentences(),
        warnings=shared_changes_note(collection),
        tally=[(verdict, number) for verdict, number in content.overview.verdicts.items() if number],
        conclusions=[_conclusion(collection, one) for one in content.conclusions if one.findings],
        missing=[
            {"statement": one.claim.statement, "where": one.claim.where, "needs": needed(one)}
            for one in content.conclusions
            if not one.findings
        ],
        tables=[_table(table, content.table_files[table.name]) for table in content.tables],
        runs=_table(content.runs, ()),
        sections=_sections(content.figures),
        left_out=collection.left_out_lines,
        problems=content.problems,
        provenance=provenance(collection.runs),
    )
    return str(text)


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("bnlab.reports.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _css() -> Any:
    """The style sheet, unescaped: it is our own file."""
    from markupsafe import Markup

    return Markup(resources.files("bnlab.reports.pages").joinpath("templates/report.css").read_text(encoding="utf-8"))


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


def _table(table: Table, files: Addresses) -> dict[str, Any]:
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
