"""The picture of one quantity: layers from top to bottom, steps from left to right, values as colours.

Figures are drawn by matplotlib's Agg without pyplot, so nothing global is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy
    from matplotlib.figure import Figure

MISSING, ZERO = "#a8a8a8", "#e41a1c"  # neither is near a colour of viridis

_DPI = 100
_FONT = 8  # points
_LETTER = 0.07  # inches: the width of a letter of DejaVu Sans Mono, which comes with matplotlib, in whole dots
_LONGEST_NAME = 40
_ROW, _HIGHEST = 0.17, 10.0  # inches
# narrow enough to be read in the width of one of TensorBoard's cards
_WIDTH, _RIGHT, _TOP, _BOTTOM = 4.0, 1.0, 0.35, 0.75


def draw(
    values: Any,
    steps: Sequence[int],
    layers: Sequence[str],
    title: str = "",
    label: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A heatmap in viridis, from dark for low values to bright for high ones.

    Grey stands for NaN and +inf, red for −inf, the logarithm of 0; where they occur, a legend says so.

    Args:
        values: (layers, steps), an array or a tensor, with one layer and one step at least.
        steps: the step of each column, increasing; a column reaches to the next one's step.
        layers: names, from the top. If there are too many to be read, only some are written.
        title: above the picture.
        label: at the colour bar.
        limits: the lowest and the highest colour's value; None for those of `values`.

    Returns:
        a figure of 100 dots an inch, for `pixels`.
    """
    import numpy
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    table = numpy.asarray(values, dtype=float)
    low, high = limits or _limits(table)
    names = [_short(layer) for layer in layers]
    left = 0.2 + _LETTER * max(map(len, names), default=0)
    rows = min(_ROW * max(len(layers), 4), _HIGHEST)
    width, height = left + _WIDTH + _RIGHT, _TOP + rows + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=_DPI)
    axes = figure.add_axes((left / width, _BOTTOM / height, _WIDTH / width, rows / height))
    beside = ((left + _WIDTH + 0.12) / width, _BOTTOM / height, 0.16 / width, rows / height)
    zero = numpy.isneginf(table)
    shown = numpy.ma.masked_invalid(numpy.where(zero, low - (high - low), table))
    cells = (_edges(steps), numpy.arange(len(layers) + 1), shown)
    colours, norm = colormaps["viridis"].with_extremes(bad=MISSING, under=ZERO), Normalize(low, high)
    mesh = axes.pcolormesh(*cells, cmap=colours, norm=norm, antialiased=False)  # antialiased, it would have seams
    _label(axes, names, title)
    bar = figure.colorbar(mesh, cax=figure.add_axes(beside))
    bar.set_label(label, fontsize=_FONT)
    bar.ax.tick_params(labelsize=_FONT)
    _explain(figure, 0.08 / height, bool(zero.any()), bool(shown.mask.any()))
    return figure


def pixels(figure: Figure) -> numpy.ndarray[Any, Any]:
    """(height, width, 3), uint8."""
    import numpy
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    colours: numpy.ndarray[Any, Any] = numpy.array(canvas.buffer_rgba())[..., :3].copy()
    return colours


def _limits(table: numpy.ndarray[Any, Any]) -> tuple[float, float]:
    import numpy

    finite = table[numpy.isfinite(table)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _edges(steps: Sequence[int]) -> list[int]:
    """Columns' borders; the last one is as wide as the widest."""
    return [*steps, steps[-1] + max((after - before for before, after in pairwise(steps)), default=1)]


def _short(name: str) -> str:
    """The number and the end of a long name."""
    if len(name) <= _LONGEST_NAME:
        return name
    number = name.partition("_")[0] + "_…"
    return number + name[len(number) - _LONGEST_NAME :]


def _label(axes: Any, names: list[str], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=_FONT + 4, loc="left")
    axes.set_xlabel("step", fontsize=_FONT)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize=_FONT)
    axes.set_ylim(len(names), 0)
    every = 1 + int(len(names) * _ROW / _HIGHEST)
    axes.set_yticks(
        [row + 0.5 for row in range(0, len(names), every)], names[::every], family="DejaVu Sans Mono", fontsize=_FONT
    )


def _explain(figure: Figure, bottom: float, zero: bool, missing: bool) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=ZERO, label="exactly 0")] if zero else []
    patches += [Patch(color=MISSING, label="not recorded or not finite")] if missing else []
    if patches:
        figure.legend(handles=patches, loc="lower right", bbox_to_anchor=(0.99, bottom), ncols=2, fontsize=_FONT)
