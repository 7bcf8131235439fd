"""Plans of all figures that a collection of runs can have, with the thesis's figures beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING

from bnlab.reports.estimates import accuracy
from bnlab.reports.figures.comparisons import batch_size_figure, comparison_figure, comparison_series
from bnlab.reports.figures.layers import difference_figure, layers_figure
from bnlab.reports.figures.training import training_figure, wall_time_figure
from bnlab.reports.reading.collection import Collection, Line, RunsByDataset, baseline
from bnlab.reports.reading.curves import CurvesOf
from bnlab.reports.reading.run import changes_words
from bnlab.reports.thesis.experiments import BATCH_SIZE, EXPERIMENTS, experiment_words
from bnlab.reports.thesis.figures import (
    BATCH_SIZE_FIGURES,
    COMPARISONS,
    CURVES,
    GRADIENTS,
    LARGE_BATCH,
    Figures,
    beside,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRADIENT = "grad_mean_abs"  # the thesis's "mean gradients"


@dataclass(frozen=True)
class FigurePlan:
    """A figure that can be drawn."""

    name: str  # the stem of its files
    section: str  # the heading above it
    title: str  # its own heading
    caption: str  # the way to read it
    draw: Callable[[], Figure | None]  # the function that draws it; gives None if the runs' records lack its data
    short: str = ""  # the section's name in a table of contents


def plan_figures(collection: Collection, curves: CurvesOf, quantity: str = GRADIENT) -> list[FigurePlan]:
    """The figures in the order of the report, not yet drawn; `quantity` is that of the heatmaps."""
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
    """Whether a line has curves: a sweep of batch sizes has them for the thesis's two sizes only."""
    return not line.is_baseline or line.batch_size in (BATCH_SIZE, LARGE_BATCH)


def _of_line(collection: Collection, line: Line, curves: CurvesOf, quantity: str) -> Iterator[FigurePlan]:
    subject, of = _subject(line), f"{line.experiment}_{changes_words(line.changes)}"
    of += f"_batch{line.batch_size}" if line.batch_size != BATCH_SIZE else ""
    runs: RunsByDataset = {dataset: collection.sides(line, dataset) for dataset in collection.datasets([line])}
    title = f"Training loss and validation accuracy for {subject}{_beside(CURVES, line)}"
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
    title = f"Mean gradients for {subject}{_beside(GRADIENTS, line)}"
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
    lines = [baseline(architecture, size) for size in collection.baseline_sizes(architecture)]
    found = {}
    for dataset in collection.datasets(lines):
        cells = {line.batch_size: list(map(accuracy, collection.sides(line, dataset))) for line in lines}
        known = {size: sides for size, sides in cells.items() if any(side.estimate for side in sides)}
        if len(known) > 1:
            found[dataset] = known
    if found:
        subject = experiment_words(f"{architecture}_relu", architecture)
        title = f"Test accuracies for {subject} using different batch sizes{beside(BATCH_SIZE_FIGURES[architecture])}"
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
            cells = {EXPERIMENTS[name].short: collection.sides(line, dataset) for name, line in lines.items()}
            series = comparison_series(cells, comparison.with_vanilla)
            if len({one.dash for one in series}) > 1:
                panels[dataset] = series
        if panels:
            net = architecture.upper()
            title = f"Validation accuracy comparison for {net} with {comparison.words}{beside(comparison.figure)}"
            nets = "Vanilla blue, batch norm green" if comparison.with_vanilla else "Batch norm alone, as in the thesis"
            yield FigurePlan(
                f"comparison_{architecture}_{comparison.name}",
                f"Comparisons, {net}",
                title,
                f"{nets}. Mean over seeds, band from the lowest to the highest; the axis need not start at 0.",
                partial(comparison_figure, title, panels, curves),
            )


def _subject(line: Line) -> str:
    if line.thesis_experiment is None:
        return f"{line.architecture.upper()}, {line.words}"
    words = experiment_words(line.experiment, line.architecture)
    return words if line.batch_size == BATCH_SIZE else f"{words}, batch size B = {line.batch_size}"


def _short(line: Line) -> str:
    name = line.thesis_experiment
    if name is None or line.batch_size != BATCH_SIZE:
        return f"{line.architecture.upper()}, {line.words}"
    return f"{line.architecture.upper()}, {EXPERIMENTS[name].short}"


def _beside(figures: Figures, line: Line) -> str:
    return beside(figures.get((line.architecture, line.thesis_experiment, line.batch_size)))


def _free(name: str, taken: Set[str]) -> str:
    """A file's name of letters, digits and underscores that is not taken.

    >>> _free("curves_../a b", {"curves_a_b"})
    'curves_a_b_2'
    """
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:80] or "figure"
    numbered = (f"{plain}_{number}" for number in count(2))
    return next(free for free in chain([plain], numbered) if free not in taken)
