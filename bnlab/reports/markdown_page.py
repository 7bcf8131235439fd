"""`report.md`: the same report as a text with links to its figures."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab import __version__
from bnlab.reports import reference
from bnlab.reports.claims.verdict import Conclusion
from bnlab.reports.collection import Collection
from bnlab.reports.conclusions import conclusions_markdown
from bnlab.reports.html_page import DrawnFigure
from bnlab.reports.overview import Overview, left_out_lines
from bnlab.reports.provenance import shared_changes_note
from bnlab.reports.table import Table, escape, to_markdown


def markdown_page(
    title: str,
    made: str,
    collection: Collection,
    overview: Overview,
    conclusions: Sequence[Conclusion],
    tables: Sequence[Table],
    runs: Table,
    figures: Sequence[DrawnFigure],
) -> str:
    """Overview, tables, conclusions, figures (where they were written as files), runs, what was left out."""
    parts = [f"# {escape(title)}\n", "".join(f"{escape(line)}\n" for line in overview.sentences())]
    parts += [f"**{escape(note)}**\n" for note in shared_changes_note(collection.shared_changes)]
    parts += [to_markdown(table) for table in tables]
    parts.append(conclusions_markdown(collection, conclusions))
    parts += _figures(figures)
    parts.append(to_markdown(runs))
    left_out = left_out_lines(collection)
    if left_out:
        listed = "".join(f"- {escape(path)}: {escape(reason)}\n" for path, reason in left_out)
        parts.append(f"### Left out\n\n{listed}")
    parts.append(f"Made by bnlab {__version__} on {made}. The thesis: {escape(reference.SOURCE)}.\n")
    return "\n".join(parts)


def _figures(figures: Sequence[DrawnFigure]) -> list[str]:
    parts, section = [], ""
    for figure in figures:
        if not figure.files:
            continue
        if figure.plan.section != section:
            section = figure.plan.section
            parts.append(f"## {escape(section)}\n")
        _, link = figure.files[0]
        parts.append(f"![{escape(figure.plan.title)}]({link})\n\n*{escape(figure.plan.caption)}*\n")
    return parts
