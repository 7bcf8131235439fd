"""A table with our numbers beside the thesis's, as CSV and Markdown; `page.py` makes the HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bnlab.reports.names import DATASETS
from bnlab.reports.statistics import Estimate

MISSING = "—"

Tone = Literal["", "agree", "differ", "within", "supported", "contradicted", "unknown"]

_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")


@dataclass(frozen=True)
class Cell:
    """One cell: what we found, what the thesis has, and how the two compare."""

    text: str
    thesis: str = ""
    verdict: str = ""
    tone: Tone = ""
    strong: bool = False
    link: str = ""  # a relative address, quoted


@dataclass(frozen=True)
class Table:
    """A table as it is shown, and its values as data.

    Attributes:
        name: of its files.
        title: above it.
        groups: names over columns, each with the number of columns that it spans; the first spans the row's heads.
        header: a name for each column.
        rows: their cells.
        heads: how many columns at the left are heads of rows.
        notes: sentences beneath.
        records: its values for CSV, one mapping a line, all with the same keys.
    """

    name: str
    title: str
    groups: tuple[tuple[str, int], ...]
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    heads: int
    notes: tuple[str, ...]
    records: tuple[Mapping[str, object], ...]


def to_csv(table: Table) -> str:
    """The records: text as it is, numbers in full, empty where there is none."""
    text = io.StringIO(newline="")
    if table.records:
        writer = csv.DictWriter(text, list(table.records[0]), lineterminator="\n")
        writer.writeheader()
        for record in table.records:
            writer.writerow({name: _csv_value(value) for name, value in record.items()})
    return text.getvalue()


def _csv_value(value: object) -> object:
    """Text that a spreadsheet would take for a formula gets an apostrophe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return "" if value is None else value


def to_markdown(table: Table, level: int = 2) -> str:
    """Title, table and notes; the thesis's value stands in brackets after ours."""
    names = [name for name, span in table.groups for _ in range(span)]
    header = [f"{group} {name}".strip() for group, name in zip(names, table.header, strict=True)]
    aligned = [":---" if place < table.heads else "---:" for place in range(len(header))]
    lines = [_line([escape(name) for name in header]), _line(aligned)]
    lines += [_line([cell_markdown(cell) for cell in row]) for row in table.rows]
    notes = "".join(f"- {escape(note)}\n" for note in table.notes)
    return f"{'#' * level} {escape(table.title)}\n\n" + "\n".join(lines) + f"\n\n{notes}"


def cell_markdown(cell: Cell) -> str:
    """`**98.15 ± 0.10** (98.0) agree`."""
    text = f"**{escape(cell.text)}**" if cell.strong else escape(cell.text)
    if cell.link:
        text = f"[{text}]({cell.link})"
    return " ".join(part for part in (text, f"({escape(cell.thesis)})" if cell.thesis else "", cell.verdict) if part)


def escape(text: str) -> str:
    """Text that Markdown and HTML within it leave alone."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_text(table: Table) -> str:
    """The table in columns for a terminal."""
    names = [name for name, span in table.groups for _ in range(span)]
    header = [f"{group} {name}".strip() for group, name in zip(names, table.header, strict=True)]
    rows = [header, *([_plain(cell) for cell in row] for row in table.rows)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(header))]
    lines = [
        "  ".join(
            text.ljust(width) if place < table.heads else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([table.title, "", lines[0], "-" * max(map(len, lines)), *lines[1:]]) + "\n"


def _plain(cell: Cell) -> str:
    return " ".join(part for part in (cell.text, f"({cell.thesis})" if cell.thesis else "", cell.verdict) if part)


def estimate_words(estimate: Estimate, signed: bool = False, digits: int = 2) -> str:
    """`98.15 ± 0.10`; of one run alone `98.15`, also where the interval comes from the number of test images."""
    number = f"{estimate.value:{'+' if signed else ''}.{digits}f}".replace("-", "−")
    if estimate.half_width is None or estimate.basis != "seeds":
        return number
    return f"{number} ± {estimate.half_width:.{digits}f}"


def rounded(value: float | None) -> float | None:
    """Enough digits for a table of percents or seconds."""
    return None if value is None else round(value, 6)


def absent_note(absent: Sequence[str]) -> tuple[str, ...]:
    """Names the thesis's datasets that no column stands for."""
    return (f"No runs on {', '.join(DATASETS[name] for name in absent)}.",) if absent else ()
