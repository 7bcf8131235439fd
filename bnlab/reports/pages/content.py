"""The content of a report's pages, whatever their format."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bnlab.reports.claims.claim import Conclusion
from bnlab.reports.figures.plans import FigurePlan
from bnlab.reports.pages.overview import Overview
from bnlab.reports.reading.collection import Collection
from bnlab.reports.tables.table import Table

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
class Content:
    """Everything that a page shows, in its order.

    Attributes:
        title: the heading.
        made: the date.
        collection: the runs.
        overview: the counts.
        conclusions: all that were judged.
        tables: those with the thesis's numbers.
        runs: the table of every run, with links.
        figures: those drawn; neighbours of one section stand under one heading.
        table_files: the files of each table, by its name.
        problems: paths of runs whose records could not be read, with the reason.
    """

    title: str
    made: str
    collection: Collection
    overview: Overview
    conclusions: Sequence[Conclusion]
    tables: Sequence[Table]
    runs: Table
    figures: Sequence[DrawnFigure]
    table_files: Mapping[str, Addresses]
    problems: Sequence[tuple[str, str]]
