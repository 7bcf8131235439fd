"""Figures of a quantity of layers over training: a line for each layer, and a heatmap of batch norm against vanilla."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnlab.reports.figures.averages import Ratio, log_ratio, mean_in_bins, over_seeds
from bnlab.reports.figures.style import GRID, TEXT, legend_below, line_handle, literal, panels, subtitle
from bnlab.reports.reading.collection import RunsByDataset
from bnlab.reports.reading.curves import CurvesOf, LayerTable
from bnlab.reports.reading.run import Run
from bnlab.reports.thesis.experiments import dataset_title, norm_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 120  # more cannot be told apart
_LOGARITHMS = ("update_ratio", "update_ratio_epoch")  # quantities recorded as log10
_MISSING = "#a8a8a8"
_LARGEST_RATIO = 4.0  # powers of ten; larger ratios have the last colour


def layers_figure(title: str, quantity: str, runs: RunsByDataset, curves: CurvesOf) -> Figure:
    """Two panels for each dataset, vanilla and batch norm, with the same axes: a line for each layer by step.

    The scale is logarithmic; the first layer is dark, the last one light. Lines are means over seeds, and over
    neighbouring steps if there are many.
    """
    names = [f"{dataset_title(dataset)}, {norm_words(flag)}" for dataset in runs for flag in (False, True)]
    figure, axes = panels(names, title, share=True)
    known: tuple[str, ...] = ()
    for place, sides in enumerate(runs.values()):
        for each, side in zip(axes[2 * place : 2 * place + 2], sides, strict=True):
            each.set(xlabel="optimizer step", yscale="log")
            table = _table(side, quantity, curves)
            if table is None:
                subtitle(each, "not recorded" if side else "no runs")
                continue
            known = max(known, table.layers, key=len)
            _draw_layers(each, mean_in_bins(table, _POINTS))
            _name_divergence(each, side)
        axes[2 * place].set_ylabel(quantity)
    if known:
        ends = [(known[0], 0.0), (known[-1], 1.0)] if len(known) > 1 else [(known[0], 0.0)]
        legend_below(figure, [line_handle(name, color=_shade(share)) for name, share in ends])
    return figure


def _table(side: Sequence[Run], quantity: str, curves: CurvesOf) -> LayerTable | None:
    """Mean over the seeds of one side; logarithms become values again."""
    table = over_seeds([found for run in side if (found := curves(run).table(quantity)) is not None])
    if table is not None and quantity in _LOGARITHMS:
        table = table._replace(values=10.0**table.values)
    return table


def difference_figure(title: str, quantity: str, runs: RunsByDataset, curves: CurvesOf) -> Figure | None:
    """A panel for each dataset, layer × step: green where batch norm's value is larger, brown where vanilla's is.

    None if no dataset has the quantity of both.
    """
    ratios = {}
    for dataset, sides in runs.items():
        tables = [_table(side, quantity, curves) for side in sides]
        if tables[0] is not None and tables[1] is not None and (ratio := log_ratio(tables[0], tables[1])) is not None:
            ratios[dataset] = ratio
    if not ratios:
        return None
    figure, axes = panels([dataset_title(dataset) for dataset in ratios], title)
    reach = min(_LARGEST_RATIO, max(_reach(ratio) for ratio in ratios.values()))
    for each, ratio in zip(axes, ratios.values(), strict=True):
        mesh = _draw_ratio(each, ratio, reach)
    bar = figure.colorbar(mesh, ax=axes, extend="both", shrink=0.9, pad=0.01)
    bar.set_label(f"log10 {quantity}, batch norm / vanilla", fontsize=8, color=TEXT)
    bar.ax.tick_params(labelsize=8, colors=TEXT)
    bar.outline.set_visible(False)
    return figure


def _reach(ratio: Ratio) -> float:
    finite = np.abs(ratio.values[np.isfinite(ratio.values)])
    return max(float(np.quantile(finite, 0.98)), 0.1) if len(finite) else 0.1


def _draw_ratio(axes: Axes, ratio: Ratio, reach: float) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    rows = len(ratio.layers)
    cells = (ratio.edges, np.arange(rows + 1), np.ma.masked_invalid(ratio.values))
    colours, norm = colormaps["BrBG"].with_extremes(bad=_MISSING), Normalize(-reach, reach)
    mesh = axes.pcolormesh(*cells, cmap=colours, norm=norm, antialiased=False, rasterized=True)
    axes.set(xlabel="optimizer step")
    axes.set_ylim(rows, 0)
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_yticks(np.arange(rows) + 0.5, [literal(layer) for layer in ratio.layers], fontsize=7)
    if np.isnan(ratio.values).any():
        subtitle(axes, "grey: 0, not recorded or not finite")
    return mesh


def _draw_layers(axes: Axes, table: LayerTable) -> None:
    last = max(len(table.layers) - 1, 1)
    for row, values in enumerate(table.values):
        shown = np.where(values > 0, values, math.nan)  # 0 has no place on a log scale
        dots = "o" if np.isfinite(shown).sum() == 1 else ""
        axes.plot(table.steps, shown, color=_shade(row / last), linewidth=1.1, marker=dots, markersize=4)


def _shade(share: float) -> Any:
    """A layer's colour, from the first at 0 to the last at 1: viridis without its brightest end, hard to see."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.88 * share)


def _name_divergence(axes: Axes, side: Sequence[Run]) -> None:
    steps = [run.diverged_at for run in side if run.diverged and run.diverged_at is not None]
    if steps:
        words = f"diverged at step {min(steps)}" if len(side) == 1 else f"{len(steps)} of {len(side)} diverged"
        subtitle(axes, words)
        axes.axvline(min(steps), color=GRID, linewidth=1.2, zorder=0)
