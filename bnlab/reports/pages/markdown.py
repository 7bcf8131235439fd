"""`report.md`: the report as text with links to its figures."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab import __version__
from bnlab.reports.pages.conclusions import conclusions_markdown
from bnlab.reports.pages.content import Content, DrawnFigure
from bnlab.reports.tables.notes import shared_changes_note
from bnlab.reports.tables.table import escape, to_markdown
from bnlab.reports.thesis.numbers import SOURCE


def markdown_page(content: Content) -> str:
    """Overview, tables, conclusions, figures that have files, runs, and those left out."""
    parts = [f"# {escape(content.title)}\n", "".join(f"{escape(line)}\n" for line in content.overview.sentences())]
    parts += [f"**{escape(note)}**\n" for note in shared_changes_note(content.collection)]
    parts += [to_markdown(table) for table in content.tables]
    parts.append(conclusions_markdown(content.collection, content.conclusions))
    parts += _figures(content.figures)
    parts.append(to_markdown(content.runs))
    left_out = content.collection.left_out_lines
    if left_out:
        listed = "".join(f"- {escape(path)}: {escape(reason)}\n" for path, reason in left_out)
        parts.append(f"### Left out\n\n{listed}")
    parts.append(f"Made by bnlab {__version__} on {content.made}. The thesis: {escape(SOURCE)}.\n")
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
