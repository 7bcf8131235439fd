"""Figures of training: loss and validation accuracy over epochs or wall time, both nets in one panel."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from bnlab.reports.estimates import accuracy
from bnlab.reports.figures import style
from bnlab.reports.figures.averages import Points
from bnlab.reports.reading.collection import RunsByDataset
from bnlab.reports.reading.curves import Curves, CurvesOf
from bnlab.reports.reading.run import Run
from bnlab.reports.thesis.experiments import dataset_title, norm_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOSS_DASHES = (0, (3, 1.5))


def training_figure(title: str, runs: RunsByDataset, curves: CurvesOf) -> Figure:
    """A panel for each dataset: validation accuracy (solid, absolute) and training loss (dashed, from 0) by epoch.

    Lines are means over seeds, with a band from the lowest to the highest where there are several.
    """
    figure, axes = style.panels([dataset_title(dataset) for dataset in runs], title)
    for each, sides in zip(axes, runs.values(), strict=True):
        each.set_ylabel("validation accuracy, %")
        each.set_ylim(0, 100)
        loss_axes = _loss_axes(each)
        highest = []
        for side in sides:
            _draw(each, [curves(run).by_epoch("val_acc", scale=100) for run in side], side, linewidth=1.6)
            losses = [curves(run).by_epoch("train_loss") for run in side]
            highest.append(_draw(loss_axes, losses, side, linestyle=_LOSS_DASHES, linewidth=1.1))
        top = loss_scale(highest)
        loss_axes.set_ylim(0, 1.05 * top)
        style.count_epochs(each)
        each.set_xlim(0, max(each.get_xlim()[1], 2))
        exploding = [side[0].batch_norm for side, value in zip(sides, highest, strict=True) if value > top]
        off_scale = "".join(f"; loss of {norm_words(flag)} off the scale" for flag in exploding)
        style.subtitle(each, _outcomes(sides) + off_scale)
    accuracies = style.line_handle("validation accuracy", color=style.TEXT)
    losses_handle = style.line_handle("training loss", color=style.TEXT, linestyle=_LOSS_DASHES, linewidth=1.1)
    style.legend_below(figure, [*_net_handles(runs), accuracies, losses_handle])
    return figure


def loss_scale(highest: Sequence[float]) -> float:
    """The highest loss on the axis, from the highest of vanilla and of batch norm.

    A loss that explodes must not flatten the other one.

    >>> loss_scale([2.4, 2.3]), loss_scale([8e24, 2.0]), loss_scale([0.0, 2.0])
    (2.4, 20.0, 2.0)
    """
    known = [value for value in highest if value > 0]
    return min(max(known), 10 * min(known)) if known else 1.0


def wall_time_figure(title: str, runs: RunsByDataset, curves: CurvesOf) -> Figure:
    """A panel for each dataset: validation accuracy against the seconds of training so far, a line for each run."""
    figure, axes = style.panels([dataset_title(dataset) for dataset in runs], title)
    for each, sides in zip(axes, runs.values(), strict=True):
        each.set(xlabel="seconds of training and validation", ylabel="validation accuracy, %")
        lines = []
        for run in (run for side in sides for run in side):
            seconds, values = accuracy_over_time(curves(run))
            paint = style.colour(run.batch_norm)
            each.plot(seconds, values, color=paint, linewidth=1.3, marker=_marker(values), markersize=4)
            lines.append(values)
        each.set_xlim(left=0)
        each.set_ylim(style.axis_start(lines), 100)
    style.legend_below(figure, _net_handles(runs))
    return figure


def accuracy_over_time(curves: Curves) -> tuple[list[float], list[float]]:
    """Seconds so far and validation accuracy in percent, for the epochs that have both."""
    seconds = curves.scalars.get("time/epoch_s", {})
    values = curves.scalars.get("val_acc", {})
    passed = dict(zip(sorted(seconds), accumulate(seconds[epoch] for epoch in sorted(seconds)), strict=True))
    epochs = [epoch for epoch in sorted(values) if epoch in passed]
    return [passed[epoch] for epoch in epochs], [100 * values[epoch] for epoch in epochs]


def _draw(axes: Axes, series: Sequence[Points], runs: Sequence[Run], **line: Any) -> float:
    """Draw the mean and the band of one net's runs; the highest value drawn, 0 for none."""
    longest = max((x for x, _ in series), key=len, default=())
    if not longest:
        return 0.0
    paint = style.colour(runs[0].batch_norm)
    found = style.draw_band(axes, series, paint, marker=_marker(longest), markersize=4, **line)
    return max((float(value) for value in found.high if value == value), default=0.0)


def _marker(values: Sized) -> str:
    """A dot for a line of one point, which would not be seen."""
    return "o" if len(values) == 1 else ""


def _loss_axes(axes: Axes) -> Axes:
    right = axes.twinx()
    right.set_ylabel("training loss", fontsize=8, color=style.TEXT)
    right.tick_params(labelsize=8, colors=style.TEXT, length=3)
    for side in right.spines.values():
        side.set_visible(False)
    return right


def _outcomes(sides: Sequence[Sequence[Run]]) -> str:
    """Test accuracy of each side, and its diverged runs."""
    parts = []
    for side in sides:
        if not side:
            continue
        found = accuracy(side)
        text = norm_words(side[0].batch_norm)
        text += f" {found.estimate.value:.2f} %" if found.estimate else " unknown"
        if found.diverged:
            steps = [run.diverged_at for run in side if run.diverged_at is not None]
            first = f" at step {min(steps)}" if steps else ""
            text += f" (diverged{first})" if len(side) == 1 else f" ({found.diverged} of {len(side)} diverged)"
        parts.append(text)
    return "test: " + "; ".join(parts) if parts else ""


def _net_handles(runs: RunsByDataset) -> list[object]:
    known = {run.batch_norm for sides in runs.values() for side in sides for run in side}
    return [style.line_handle(norm_words(flag), color=style.colour(flag)) for flag in sorted(known)]
