"""Every figure that a collection of runs can have, with what the thesis shows beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from bnlab.reports.accuracy import accuracy
from bnlab.reports.accuracy_table import line_words
from bnlab.reports.collection import Collection, Line
from bnlab.reports.comparisons import batch_size_figure, comparison_figure, comparison_series
from bnlab.reports.gradient_figures import difference_figure, layers_figure
from bnlab.reports.learning_curves import CurvesOf, Panels, training_figure, wall_time_figure
from bnlab.reports.names import BATCH_SIZE, EXPERIMENTS, experiment_words
from bnlab.reports.runs import changes_words
from bnlab.reports.thesis_figures import (
    BATCH_SIZES,
    COMPARISONS,
    CURVES,
    GRADIENTS,
    LARGE_BATCH,
    LARGE_BATCH_CURVES,
    LARGE_BATCH_GRADIENTS,
    Comparison,
    beside,
)
from bnlab.reports.times import baseline, is_baseline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRADIENT = "grad_mean_abs"  # the thesis's "mean gradients"


@dataclass(frozen=True)
class FigurePlan:
    """A figure that can be drawn.

    Attributes:
        name: of its files.
        section: heading that it stands under.
        title: above it.
        caption: how to read it.
        draw: makes it; None where the runs' records turn out not to hold what it needs.
    """

    name: str
    section: str
    title: str
    caption: str
    draw: Callable[[], Figure | None]
    short: str = ""  # for the heading, in a table of contents


def plan_figures(collection: Collection, curves: CurvesOf, quantity: str = GRADIENT) -> list[FigurePlan]:
    """The figures, in the order of the report; drawing is left to their `draw`.

    Args:
        collection: the runs.
        curves: gives a run's records.
        quantity: of the heatmaps of batch norm against vanilla.
    """
    names: set[str] = set()
    plans = []
    for architecture in ("mlp", "cnn"):
        found = [
            *_batch_sizes(collection, architecture),
            *_comparisons(collection, architecture, curves),
            *(
                plan
                for line in collection.lines
                if line.architecture == architecture and _drawn(line)
                for plan in _of_line(collection, line, curves, quantity)
            ),
        ]
        for plan in found:
            name = _free(plan.name, names)
            names.add(name)
            plans.append(replace(plan, name=name))
    return plans


def _drawn(line: Line) -> bool:
    """A sweep of batch sizes is one figure; curves are drawn for the sizes that the thesis draws them for."""
    return not is_baseline(line, line.architecture) or line.batch_size in (BATCH_SIZE, LARGE_BATCH)


def _of_line(collection: Collection, line: Line, curves: CurvesOf, quantity: str) -> Iterator[FigurePlan]:
    subject, of = _subject(line), f"{line.experiment}_{changes_words(line.changes)}"
    of += f"_batch{line.batch_size}" if line.batch_size != BATCH_SIZE else ""
    runs: Panels = {
        dataset: (collection.cell(line, dataset, False), collection.cell(line, dataset, True))
        for dataset in collection.datasets([line])
    }
    title = f"Training loss and validation accuracy for {subject}{beside(_curves_figure(line))}"
    yield FigurePlan(
        f"curves_{of}",
        subject,
        title,
        "Validation accuracy solid (left axis, absolute), training loss dashed (right axis, from 0). Mean over seeds; "
        "the band reaches from the lowest to the highest, and a run that has stopped keeps its last value.",
        partial(training_figure, title, runs, curves),
        _short(line),
    )
    title = f"Validation accuracy against wall time for {subject}"
    yield FigurePlan(
        f"wall_time_{of}",
        subject,
        title,
        "Validation accuracy by the seconds of training and validation so far, a line for each run; the axis need not "
        "start at 0. The thesis tells epochs from wall time in sections 7.1.6 and 7.2.6, without a figure.",
        partial(wall_time_figure, title, runs, curves),
    )
    title = f"Mean gradients for {subject}{beside(_gradients_figure(line))}"
    yield FigurePlan(
        f"gradients_{of}",
        subject,
        title,
        "Mean absolute gradient of each layer's weights (grad_mean_abs) by optimizer step, first layer dark, last "
        "layer light; logarithmic, the same axes for vanilla and batch norm. Mean over seeds and neighbouring steps.",
        partial(layers_figure, title, GRADIENT, runs, curves),
    )
    title = f"{quantity} of batch norm against vanilla for {subject}"
    yield FigurePlan(
        f"difference_{quantity}_{of}",
        subject,
        title,
        f"log10 of {quantity} with batch norm over {quantity} without, by layer (first at the top) and step: green "
        "where batch norm's is larger, brown where vanilla's is. Up to the last step that both reached; mean over "
        "seeds.",
        partial(difference_figure, title, quantity, runs, curves),
    )


def _batch_sizes(collection: Collection, architecture: str) -> Iterator[FigurePlan]:
    sizes = sorted(line.batch_size for line in collection.lines if is_baseline(line, architecture))
    found = {}
    for dataset in collection.datasets(baseline(architecture, size) for size in sizes):
        cells = {
            size: [accuracy(collection.cell(baseline(architecture, size), dataset, flag)) for flag in (False, True)]
            for size in sizes
        }
        known = {size: sides for size, sides in cells.items() if any(side.estimate for side in sides)}
        if len(known) > 1:
            found[dataset] = known
    if found:
        subject = experiment_words(f"{architecture}_relu", architecture)
        title = f"Test accuracies for {subject} using different batch sizes{beside(BATCH_SIZES[architecture])}"
        caption = (
            "Test accuracy after the last epoch, mean and 95 % t-interval over seeds; the dotted line is the baseline."
        )
        section = f"Comparisons, {architecture.upper()}"
        yield FigurePlan(
            f"batch_size_{architecture}", section, title, caption, partial(batch_size_figure, title, found)
        )


def _comparisons(collection: Collection, architecture: str, curves: CurvesOf) -> Iterator[FigurePlan]:
    for comparison in COMPARISONS:
        if comparison.architecture != architecture:
            continue
        lines = {name: Line(architecture, f"{architecture}_{name}") for name in comparison.experiments}
        panels = {}
        for dataset in collection.datasets(lines.values()):
            cells = {
                EXPERIMENTS[name].short: [collection.cell(line, dataset, flag) for flag in (False, True)]
                for name, line in lines.items()
            }
            series = comparison_series(cells, comparison.with_vanilla)
            if len({one.dash for one in series}) > 1:
                panels[dataset] = series
        if panels:
            yield _comparison_plan(comparison, partial(comparison_figure, lines=panels, curves=curves))


def _comparison_plan(comparison: Comparison, draw: Callable[[str], Figure]) -> FigurePlan:
    title = (
        f"Validation accuracy comparison for {comparison.architecture.upper()} with {comparison.words}"
        f"{beside(comparison.figure)}"
    )
    nets = "Vanilla blue, batch norm green" if comparison.with_vanilla else "Batch norm alone, as in the thesis"
    return FigurePlan(
        f"comparison_{comparison.architecture}_{comparison.name}",
        f"Comparisons, {comparison.architecture.upper()}",
        title,
        f"{nets}. Mean over seeds, band from the lowest to the highest; the axis need not start at 0.",
        partial(draw, title),
    )


def _subject(line: Line) -> str:
    if line.changes or line.thesis_experiment is None:
        return f"{line.architecture.upper()}, {line_words(line)}"
    words = experiment_words(line.experiment, line.architecture)
    return words if line.batch_size == BATCH_SIZE else f"{words}, batch size B = {line.batch_size}"


def _short(line: Line) -> str:
    name = line.thesis_experiment
    if name is None or line.batch_size != BATCH_SIZE:
        return f"{line.architecture.upper()}, {line_words(line)}"
    return f"{line.architecture.upper()}, {EXPERIMENTS[name].short}"


def _curves_figure(line: Line) -> str | None:
    if line.batch_size == LARGE_BATCH and is_baseline(line, line.architecture):
        return LARGE_BATCH_CURVES.get(line.architecture)
    return CURVES.get((line.architecture, line.thesis_experiment or "")) if line.batch_size == BATCH_SIZE else None


def _gradients_figure(line: Line) -> str | None:
    if line.batch_size == LARGE_BATCH and is_baseline(line, line.architecture):
        return LARGE_BATCH_GRADIENTS.get(line.architecture)
    return GRADIENTS.get((line.architecture, line.thesis_experiment or "")) if line.batch_size == BATCH_SIZE else None


def _free(name: str, taken: Sequence[str] | set[str]) -> str:
    """A file's name without anything that a file system or a link could stumble over, and that is not taken.

    >>> _free("curves_../a b", {"curves_a_b"})
    'curves_a_b_2'
    """
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:80] or "figure"
    number, free = 1, plain
    while free in taken:
        number += 1
        free = f"{plain}_{number}"
    return free
