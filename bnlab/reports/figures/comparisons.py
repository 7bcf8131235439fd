"""Figures of several experiments in one panel: validation accuracy by epoch, test accuracy by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bnlab.reports.estimates import Measured
from bnlab.reports.figures import style
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
            paint = style.colour(batch_norm) if with_vanilla else style.OTHERS[place % len(style.OTHERS)]
            label = f"{name}, {norm_words(batch_norm)}" if with_vanilla else name
            if runs:
                lines.append(Series(label, runs, paint, style.DASHES[place % len(style.DASHES)]))
    return lines


def comparison_figure(title: str, lines: Mapping[str, Sequence[Series]], curves: CurvesOf) -> Figure:
    """A panel for each dataset: validation accuracy by epoch, mean over seeds, band from the lowest to the highest."""
    figure, axes = style.panels([dataset_title(dataset) for dataset in lines], title)
    for each, series in zip(axes, lines.values(), strict=True):
        each.set_ylabel("validation accuracy, %")
        style.count_epochs(each)
        means = []
        for one in series:
            points = [curves(run).by_epoch("val_acc", scale=100) for run in one.runs]
            means.append(style.draw_band(each, points, one.colour, linestyle=one.dash, linewidth=1.5).mean.tolist())
        each.set_xlim(left=0)
        each.set_ylim(style.axis_start(means), 100)
    every = {one.name: one for series in lines.values() for one in series}.values()
    style.legend_below(figure, [style.line_handle(one.name, color=one.colour, linestyle=one.dash) for one in every])
    return figure


def batch_size_figure(title: str, found: Mapping[str, Mapping[int, Sequence[Measured]]]) -> Figure:
    """A panel for each dataset: test accuracy in percent by batch size, with 95 % intervals over seeds.

    `found` has those of vanilla and batch norm, by dataset and batch size.
    """
    from matplotlib.ticker import NullLocator

    figure, axes = style.panels([dataset_title(dataset) for dataset in found], title)
    looks: list[dict[str, Any]] = [
        {"color": style.colour(flag), "marker": "s" if flag else "o", "markersize": 4} for flag in (False, True)
    ]
    for each, sizes in zip(axes, found.values(), strict=True):
        each.set(xlabel="batch size", ylabel="test accuracy, %")
        each.set_xscale("log", base=2)
        for side, look in enumerate(looks):
            known = {size: ours for size in sorted(sizes) if (ours := sizes[size][side].estimate) is not None}
            errors = [estimate.half_width or 0.0 for estimate in known.values()]
            values = [estimate.value for estimate in known.values()]
            each.errorbar(list(known), values, yerr=errors, linewidth=1.5, elinewidth=0.9, capsize=2.5, **look)
        each.axvline(BATCH_SIZE, color="#bbbbbb", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        each.set_ylim(top=min(each.get_ylim()[1], 100.5))
        each.set_xticks(sorted(sizes), [str(size) for size in sorted(sizes)])
        each.xaxis.set_minor_locator(NullLocator())
    style.legend_below(figure, [style.line_handle(norm_words(bool(side)), **look) for side, look in enumerate(looks)])
    return figure
