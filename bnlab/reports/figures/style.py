"""The style of the figures: colours, panels, legends, PNG and SVG. Matplotlib's own settings are left alone.

Vanilla is blue and batch norm green, accuracy solid and loss dashed, as in chapter 7 of the thesis. The two colours
differ in lightness too, so they can be told apart in grey and with any kind of colour vision.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bnlab.reports.figures.averages import Band, Points, band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VANILLA, BATCH_NORM = "#1f4e9c", "#2ca25f"
OTHERS = ("#2ca25f", "#d55e00", "#56307d", "#999999")  # of experiments side by side, the baseline first
DASHES = ("solid", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
TEXT, GRID = "#333333", "#d9d9d9"

_PANEL = (4.6, 2.9)  # inches
_TITLE, _BOTTOM = 0.75, 0.55
_DPI = 130
_ATTRIBUTE, _LONG_NUMBER = re.compile(rb'="[^"]*"'), re.compile(rb"(\d\.\d\d)\d+")
_SETTINGS = {
    "svg.hashsalt": "bnlab",  # the same figure has the same names in its file
    "svg.fonttype": "none",  # text stays text: it can be searched, and the file is smaller
    "font.family": ["DejaVu Sans"],
    "path.simplify_threshold": 0.5,
}


def colour(batch_norm: bool) -> str:
    """The colour of a net's lines."""
    return BATCH_NORM if batch_norm else VANILLA


def panels(titles: Sequence[str], title: str, share: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each of `titles`, two in a row, which `share` their axes' ranges or not."""
    from matplotlib.figure import Figure

    columns = min(2, len(titles))
    rows = -(-len(titles) // columns)
    width, height = columns * _PANEL[0], rows * _PANEL[1] + _TITLE + _BOTTOM
    figure = Figure(figsize=(width, height), layout="constrained")
    heading = "\n".join(textwrap.wrap(title, int(width * 12.5)))
    figure.suptitle(literal(heading), fontsize=10.5, color=TEXT, x=0.01, ha="left")
    sharing: Any = "row" if share else False
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharing, sharey=sharing)
    axes = list(grid.flat)
    for spare in axes[len(titles) :]:
        spare.remove()
    for each, name in zip(axes, titles, strict=False):
        each.set_title(literal(name), fontsize=9, color=TEXT, loc="left")
        _tidy(each)
    return figure, axes[: len(titles)]


def axis_start(lines: Iterable[Sequence[float]]) -> float:
    """The start of an axis of accuracies in percent, so that later differences of the lines can be seen.

    A multiple of ten, at least five points below the lowest value that a line has after a quarter of its epochs.

    >>> axis_start([[20.0, 97.0, 98.0, 98.0], [93.0]]), axis_start([[10.0]]), axis_start([[]])
    (80.0, 0.0, 0.0)
    """
    known = [line[len(line) // 4] for line in lines if len(line)]
    known = [value for value in known if math.isfinite(value)]
    return max(0.0, 10.0 * math.floor((min(known) - 5) / 10)) if known else 0.0


def draw_band(axes: Axes, series: Sequence[Points], paint: str, **style: Any) -> Band:
    """Draw the mean of several runs' points, with a band from the lowest to the highest."""
    found = band(series)
    axes.plot(found.x, found.mean, color=paint, **style)
    if len(series) > 1:
        axes.fill_between(found.x, found.low, found.high, color=paint, alpha=0.15, linewidth=0)
    return found


def count_epochs(axes: Axes) -> None:
    """Whole epochs on the x axis, also where there is only one."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _tidy(axes: Axes) -> None:
    """Axes with a light grid below the lines and without a box."""
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=TEXT, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)


def legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend for all panels."""
    if handles:
        columns = 4 if figure.get_figwidth() > _PANEL[0] else 2
        figure.legend(handles=list(handles), loc="outside lower left", ncols=columns, fontsize=8, frameon=False)


def line_handle(label: str, **style: Any) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=literal(label), **{"linewidth": 1.6, **style})


def literal(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return re.sub(r"\\*\$", r"\\$", text)


def subtitle(axes: Axes, text: str) -> None:
    """A remark below a panel's title."""
    lines = textwrap.wrap(text, 80)
    axes.set_title(axes.get_title(loc="left"), fontsize=9, color=TEXT, loc="left", pad=8 + 10 * len(lines))
    shown = literal("\n".join(lines))
    axes.text(0, 1.025, shown, transform=axes.transAxes, fontsize=7.5, color="#666666", va="bottom")


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    return _save(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure."""
    content = _save(figure, "svg", {"Date": None, "Creator": None})
    # two decimals: a hundredth of a point cannot be seen; text stands in no attribute
    return _ATTRIBUTE.sub(lambda attribute: _LONG_NUMBER.sub(rb"\1", attribute[0]), content)


def _save(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box is drawn for it
        figure.savefig(file, format=kind, dpi=_DPI, metadata=metadata, facecolor="white")
    return file.getvalue()
