"""`report.html`: one page without other files, network or scripts.

All text of runs goes through Jinja's autoescape; a content security policy forbids requests and scripts besides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from itertools import groupby
from typing import Any

from bnlab import __version__
from bnlab.reports.pages.conclusions import needed, run_names
from bnlab.reports.pages.content import Content, DrawnFigure
from bnlab.reports.tables.notes import provenance, shared_changes_note
from bnlab.reports.thesis.numbers import SOURCE


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
        conclusions=[(one, run_names(collection, one)) for one in content.conclusions if one.findings],
        missing=[(one.claim, needed(one)) for one in content.conclusions if not one.findings],
        tables=[(table, _short(table.title), content.table_files[table.name]) for table in content.tables],
        runs=content.runs,
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


def _short(title: str) -> str:
    """A table's name in the contents: that of the thesis's table or figure, if there is one."""
    thesis = re.search(r"\(thesis: (.+)\)$", title)
    return thesis[1][0].upper() + thesis[1][1:] if thesis else title


def _sections(figures: Sequence[DrawnFigure]) -> list[tuple[str, str, list[DrawnFigure]]]:
    """Title, name in the contents, and figures of each section."""
    grouped = [(title, list(some)) for title, some in groupby(figures, key=lambda figure: figure.plan.section)]
    return [(title, some[0].plan.short or title, some) for title, some in grouped]
