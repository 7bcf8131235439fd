"""Figures of several experiments in one panel: validation accuracy by epoch, test accuracy by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from bnlab.reports.estimates import Measured
from bnlab.reports.figures.style import (
    DASHES,
    OTHERS,
    axis_start,
    colour,
    count_epochs,
    draw_band,
    legend_below,
    line_handle,
    panels,
)
from bnlab.reports.reading.curves import CurvesOf
from bnlab.reports.reading.run import Run
from bnlab.reports.thesis.experiments import BATCH_SIZE, dataset_title, norm_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Series(NamedTuple):
    """A line of a comparison."""

    name: str
    runs: Sequence[Run]
    colour: str
    dash: object


def comparison_series(experiments: Mapping[str, Sequence[Sequence[Run]]], with_vanilla: bool) -> list[Series]:
    """Lines of a panel, from each experiment's vanilla and batch-normalised runs by its name.

    With both nets the colour tells the net and the dashes the experiment, as in the thesis's figure 7.4; with batch
    norm alone the colour tells the experiment too.
    """
    lines = []
    for place, (name, sides) in enumerate(experiments.items()):
        for batch_norm in (False, True) if with_vanilla else (True,):
            runs = sides[int(batch_norm)]
            paint = colour(batch_norm) if with_vanilla else OTHERS[place % len(OTHERS)]
            label = f"{name}, {norm_words(batch_norm)}" if with_vanilla else name
            if runs:
                lines.append(Series(label, runs, paint, DASHES[place % len(DASHES)]))
    return lines


def comparison_figure(title: str, lines: Mapping[str, Sequence[Series]], curves: CurvesOf) -> Figure:
    """A panel for each dataset: validation accuracy by epoch, mean over seeds, band from the lowest to the highest."""
    figure, axes = panels([dataset_title(dataset) for dataset in lines], title)
    for each, series in zip(axes, lines.values(), strict=True):
        each.set_ylabel("validation accuracy, %")
        count_epochs(each)
        means = []
        for one in series:
            points = [curves(run).by_epoch("val_acc", scale=100) for run in one.runs]
            means.append(draw_band(each, points, one.colour, linestyle=one.dash, linewidth=1.5).mean.tolist())
        each.set_xlim(left=0)
        each.set_ylim(axis_start(means), 100)
    every = {one.name: one for series in lines.values() for one in series}
    legend_below(figure, [line_handle(name, color=one.colour, linestyle=one.dash) for name, one in every.items()])
    return figure


def batch_size_figure(title: str, found: Mapping[str, Mapping[int, Sequence[Measured]]]) -> Figure:
    """A panel for each dataset: test accuracy in percent by batch size, with 95 % intervals over seeds.

    `found` has those of vanilla and batch norm, by dataset and batch size.
    """
    from matplotlib.ticker import NullLocator

    figure, axes = panels([dataset_title(dataset) for dataset in found], title)
    nets = [
        line_handle(norm_words(flag), color=colour(flag), marker="s" if flag else "o", markersize=4)
        for flag in (False, True)
    ]
    for each, sizes in zip(axes, found.values(), strict=True):
        each.set(xlabel="batch size", ylabel="test accuracy, %")
        each.set_xscale("log", base=2)
        for batch_norm in (False, True):
            known = {size: sides[int(batch_norm)].estimate for size, sides in sorted(sizes.items())}
            points = [(size, estimate) for size, estimate in known.items() if estimate is not None]
            each.errorbar(
                [size for size, _ in points],
                [estimate.value for _, estimate in points],
                yerr=[estimate.half_width or 0.0 for _, estimate in points],
                color=colour(batch_norm),
                marker="s" if batch_norm else "o",
                markersize=4,
                linewidth=1.5,
                elinewidth=0.9,
                capsize=2.5,
            )
        each.axvline(BATCH_SIZE, color="#bbbbbb", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        each.set_ylim(top=min(each.get_ylim()[1], 100.5))
        each.set_xticks(sorted(sizes), [str(size) for size in sorted(sizes)])
        each.xaxis.set_minor_locator(NullLocator())
    legend_below(figure, nets)
    return figure
