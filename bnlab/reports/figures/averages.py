"""Means of curves over seeds and steps, and batch norm's ratio to vanilla, as the figures draw them."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnlab.reports.reading.curves import LayerTable

Points = tuple[Sequence[float], Sequence[float]]  # x and y

_COLUMNS = 80  # more cannot be told apart


class Band(NamedTuple):
    """Mean, lowest and highest value of several runs at the same x."""

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def band(series: Sequence[Points]) -> Band:
    """Mean, lowest and highest over runs, at each x that one of them has.

    A run that stopped before the others keeps its last value, as its net does: else the mean would jump there. Values
    that are not finite don't count; NaN where no run has a finite one.
    """
    places = sorted({place for x, _ in series for place in x})
    columns = [_held(dict(zip(x, y, strict=True)), places) for x, y in series if len(x)]
    rows = [[value for value in row if math.isfinite(value)] for row in zip(*columns, strict=True)]
    found = [(math.fsum(row) / len(row), min(row), max(row)) if row else (math.nan,) * 3 for row in rows]
    table = np.array(found, dtype=float).reshape(len(places), 3)
    return Band(np.array(places, dtype=float), table[:, 0], table[:, 1], table[:, 2])


def _held(values: Mapping[float, float], places: Sequence[float]) -> list[float]:
    """A run's values at the places: NaN where it has none, its last one after its end."""
    end = max(values)
    return [values[end] if place > end else values.get(place, math.nan) for place in places]


def mean_in_bins(table: LayerTable, bins: int) -> LayerTable:
    """A table of at most `bins` columns: neighbouring steps are merged by the mean of each layer's finite values."""
    count = len(table.steps)
    if count <= bins:
        return table
    edges = np.linspace(0, count, bins + 1).astype(int)
    parts = [slice(start, end) for start, end in pairwise(edges)]
    values = np.stack([_finite_mean(table.values[:, part]) for part in parts], axis=1)
    return LayerTable(values, np.array([table.steps[part].mean() for part in parts]), table.layers)


def _finite_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the finite values over the last axis; NaN where there is none."""
    finite = np.isfinite(values)
    return _quotient(np.where(finite, values, 0.0).sum(axis=-1), finite.sum(axis=-1))


def _quotient(total: NDArray[Any], number: NDArray[Any]) -> NDArray[np.float64]:
    """Means from sums and counts; NaN for a count of 0."""
    return np.where(number > 0, total / np.maximum(number, 1), math.nan)


def over_seeds(tables: Sequence[LayerTable]) -> LayerTable | None:
    """Mean of the finite values at all steps of the runs, for the layers of the first run; None without a run."""
    if not tables:
        return None
    steps = np.unique(np.concatenate([table.steps for table in tables]))
    layers = tables[0].layers
    total, number = np.zeros((len(layers), len(steps))), np.zeros((len(layers), len(steps)))
    for table in tables:
        columns = np.searchsorted(steps, table.steps)
        for row, layer in enumerate(layers):
            if layer in table.layers:
                values = table.values[table.layers.index(layer)]
                finite = np.isfinite(values)
                total[row, columns[finite]] += values[finite]
                number[row, columns[finite]] += 1
    return LayerTable(_quotient(total, number), steps, layers)


class Ratio(NamedTuple):
    """log10 of batch norm's value over vanilla's, by layer and step."""

    values: NDArray[np.float64]  # (layers, columns)
    edges: NDArray[np.float64]  # steps at the borders of the columns
    layers: tuple[str, ...]  # their names


def log_ratio(vanilla: LayerTable, batch_norm: LayerTable, columns: int = _COLUMNS) -> Ratio | None:
    """Ratio over the layers and steps that both tables have; None without such layers or steps.

    The steps up to the last one that both reached are divided into at most `columns` intervals, and the means of the
    finite values in each are compared. NaN where one of the two has none or is 0.
    """
    last = min(vanilla.steps[-1], batch_norm.steps[-1])
    layers = tuple(layer for layer in vanilla.layers if layer in batch_norm.layers)
    common = np.intersect1d(vanilla.steps, batch_norm.steps)
    if not layers or not len(common):
        return None
    edges = np.linspace(0, last + 1, min(columns, len(common)) + 1)
    means = [
        np.stack([_interval_means(table.values[table.layers.index(layer)], table.steps, edges) for layer in layers])
        for table in (vanilla, batch_norm)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log10(means[1] / means[0])
    return Ratio(np.where(np.isfinite(values), values, math.nan), edges, layers)


def _interval_means(
    values: NDArray[np.float64], steps: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean of the finite values between neighbouring edges; NaN where there is none."""
    finite = np.isfinite(values) & (steps < edges[-1])
    place = np.searchsorted(edges, steps[finite], side="right") - 1
    number = np.bincount(place, minlength=len(edges) - 1)
    total = np.bincount(place, weights=values[finite], minlength=len(edges) - 1)
    return _quotient(total, number)
