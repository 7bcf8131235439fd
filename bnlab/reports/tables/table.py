"""A table with our numbers beside the thesis's, and its form as text, CSV and Markdown."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bnlab.reports.estimates import Estimate, Measured

MISSING = "—"

Tone = Literal["", "agree", "differ", "within"]

_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")


@dataclass(frozen=True)
class Cell:
    """One cell: our value, the thesis's, and how the two compare."""

    text: str
    thesis: str = ""
    verdict: str = ""
    tone: Tone = ""
    strong: bool = False
    link: str = ""  # a relative address, quoted


@dataclass(frozen=True)
class Table:
    """A table as it is shown, and its values as data."""

    name: str  # the stem of its files
    title: str  # the heading
    groups: tuple[tuple[str, int], ...]  # names above so many columns each; the first spans the rows' heads
    header: tuple[str, ...]  # a name for each column
    rows: tuple[tuple[Cell, ...], ...]  # the cells
    heads: int  # the number of columns, from the left, that are heads of rows
    notes: tuple[str, ...]  # sentences beneath
    records: tuple[Mapping[str, object], ...]  # the values for CSV, one mapping a line, all with the same keys

    @property
    def columns(self) -> list[str]:
        """The name of each column after its group's."""
        groups = [name for name, span in self.groups for _ in range(span)]
        return [f"{group} {name}".strip() for group, name in zip(groups, self.header, strict=True)]


def to_csv(table: Table) -> str:
    """The records as CSV: numbers in full, an empty field for None."""
    text = io.StringIO(newline="")
    if table.records:
        writer = csv.DictWriter(text, list(table.records[0]), lineterminator="\n")
        writer.writeheader()
        for record in table.records:
            writer.writerow({name: _csv_value(value) for name, value in record.items()})
    return text.getvalue()


def _csv_value(value: object) -> object:
    """An apostrophe keeps text from being a spreadsheet's formula."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return "" if value is None else value


def to_markdown(table: Table) -> str:
    """Title, table and notes; the thesis's value stands in brackets after ours."""
    aligned = [":---" if place < table.heads else "---:" for place in range(len(table.header))]
    lines = [_line([escape(name) for name in table.columns]), _line(aligned)]
    lines += [_line([_cell_markdown(cell) for cell in row]) for row in table.rows]
    notes = "".join(f"- {escape(note)}\n" for note in table.notes)
    return f"## {escape(table.title)}\n\n" + "\n".join(lines) + f"\n\n{notes}"


def _cell_markdown(cell: Cell) -> str:
    """`**98.15 ± 0.10** (98.0) agree`."""
    text = f"**{escape(cell.text)}**" if cell.strong else escape(cell.text)
    if cell.link:
        text = f"[{text}]({cell.link})"
    return " ".join(part for part in (text, f"({escape(cell.thesis)})" if cell.thesis else "", cell.verdict) if part)


def escape(text: str) -> str:
    """Text as it is, also in Markdown and in HTML within Markdown."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_text(table: Table) -> str:
    """The table in columns, for a terminal."""
    rows = [table.columns, *([_plain(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
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
    """`98.15 ± 0.10`; `98.15` without an interval over seeds."""
    number = f"{estimate.value:{'+' if signed else ''}.{digits}f}".replace("-", "−")
    if estimate.half_width is None or estimate.basis != "seeds":
        return number
    return f"{number} ± {estimate.half_width:.{digits}f}"


def estimate_values(value: str, interval: str, estimate: Estimate | None) -> dict[str, float | None]:
    """An estimate for a record, under these two names."""
    numbers = (estimate.value, estimate.half_width) if estimate else (None, None)
    return {value: rounded(numbers[0]), interval: rounded(numbers[1])}


def side_values(sides: Sequence[Measured], unit: str, diverged: bool = False) -> dict[str, object]:
    """Vanilla's and batch norm's estimates for a record, with their sources."""
    values: dict[str, object] = {}
    for name, side in zip(("vanilla", "batch_norm"), sides, strict=True):
        values |= estimate_values(f"{name}_{unit}", f"{name}_interval", side.estimate)
        values[f"{name}_n"] = side.estimate.n if side.estimate else 0
        if diverged:
            values[f"{name}_diverged"] = side.diverged
        values[f"{name}_thesis"] = side.thesis
    return values


def rounded(value: float | None) -> float | None:
    """A percentage or a time with six decimals."""
    return None if value is None else round(value, 6)
