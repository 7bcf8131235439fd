"""What a run's records hold over time: scalars by epoch, quantities of layers by step."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bnlab.reports.run_files import clean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bnlab_callbacks import Row

SCALARS = ("train_loss", "val_loss", "val_acc", "time/epoch_s")


class LayerTable(NamedTuple):
    """One quantity of every layer: values (layers, steps), NaN where nothing was recorded."""

    values: NDArray[np.float64]
    steps: NDArray[np.float64]
    layers: tuple[str, ...]


@dataclass
class Curves:
    """Of one run.

    Attributes:
        scalars: by quantity and epoch.
        layers: by quantity, layer and step.
        problem: why there are no records, or not all.
    """

    scalars: dict[str, dict[int, float]] = field(default_factory=dict)
    layers: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    problem: str = ""

    def by_epoch(self, quantity: str) -> tuple[list[int], list[float]]:
        """Epochs, counted from 1, and values, as many as there are."""
        known = sorted(self.scalars.get(quantity, {}).items())
        return [epoch + 1 for epoch, _ in known], [value for _, value in known]

    def table(self, quantity: str) -> LayerTable | None:
        """A quantity over layers (in order of execution) and steps; None if it was not recorded."""
        found = self.layers.get(quantity, {})
        steps = sorted({step for values in found.values() for step in values})
        if not steps:
            return None
        layers = tuple(sorted(found, key=_layer_number))
        values = [[found[layer].get(step, math.nan) for step in steps] for layer in layers]
        return LayerTable(np.array(values), np.array(steps, dtype=float), layers)


def read_curves(folder: Path, quantities: Collection[str] = ("grad_mean_abs",)) -> Curves:
    """The records of a run: `SCALARS`, and `quantities` of each layer.

    A table that is missing or broken is no error: its `problem` says what was wrong, and what was read before stays.
    """
    from bnlab_callbacks import read_records

    curves = Curves()
    names = [name for name in ("records.csv", "records.parquet") if (folder / name).is_file()]
    if not names:
        curves.problem = "no records.csv"
        return curves
    try:
        _fill(curves, read_records(folder / names[0]), quantities)
    except (OSError, ValueError, OverflowError, ImportError, csv.Error) as error:
        curves.problem = f"{names[0]} is broken: {clean(error)}"
    return curves


def _fill(curves: Curves, rows: Iterable[Row], quantities: Collection[str]) -> None:
    """Rows stand in the order they were written; of several of one moment the last counts.

    Where a run was taken up again from an earlier epoch, what was written of later ones was abandoned.
    """
    latest = 0
    for row in rows:
        if not (row.quantity in SCALARS or (row.layer and row.quantity in quantities)):
            continue
        if row.epoch < latest:
            _forget_after(curves, row)
        latest = row.epoch
        if row.layer:
            curves.layers.setdefault(row.quantity, {}).setdefault(row.layer, {})[row.step] = row.value
        else:
            curves.scalars.setdefault(row.quantity, {})[row.epoch] = row.value


def _forget_after(curves: Curves, row: Row) -> None:
    for scalars in curves.scalars.values():
        for epoch in [epoch for epoch in scalars if epoch > row.epoch]:
            del scalars[epoch]
    for layers in curves.layers.values():
        for values in layers.values():
            for step in [step for step in values if step > row.step]:
                del values[step]


def _layer_number(layer: str) -> tuple[int, str]:
    digits = layer.partition("_")[0]
    return (int(digits) if digits.isdecimal() else 0, layer)


class Band(NamedTuple):
    """Several runs' values at the same x: their mean, lowest and highest."""

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def band(series: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Band:
    """Mean, lowest and highest over runs at each x that one of them has.

    A run that stopped before the others keeps its last value, as its net does: else the mean would jump where it
    stopped. Values that are not finite don't count; where no run has a finite one, the result is NaN.
    """
    places = sorted({place for x, _ in series for place in x})
    columns = [_held(dict(zip(x, y, strict=True)), places) for x, y in series if len(x)]
    rows = [[value for value in row if math.isfinite(value)] for row in zip(*columns, strict=True)]
    found = [(math.fsum(row) / len(row), min(row), max(row)) if row else (math.nan,) * 3 for row in rows]
    table = np.array(found, dtype=float).reshape(len(places), 3)
    return Band(np.array(places, dtype=float), table[:, 0], table[:, 1], table[:, 2])


def _held(values: Mapping[float, float], places: Sequence[float]) -> list[float]:
    """A run's values, NaN where it has none, the last one after its end."""
    end = max(values)
    return [values[end] if place > end else values.get(place, math.nan) for place in places]


def mean_in_bins(table: LayerTable, bins: int) -> LayerTable:
    """At most `bins` columns: neighbouring steps are merged, each layer by the mean of its finite values."""
    count = len(table.steps)
    if count <= bins:
        return table
    edges = np.linspace(0, count, bins + 1).astype(int)
    parts = [slice(start, end) for start, end in pairwise(edges)]
    values = np.stack([_finite_mean(table.values[:, part]) for part in parts], axis=1)
    return LayerTable(values, np.array([table.steps[part].mean() for part in parts]), table.layers)


def _finite_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis, of finite values; NaN where there is none."""
    finite = np.isfinite(values)
    number = finite.sum(axis=-1)
    total = np.where(finite, values, 0.0).sum(axis=-1)
    return np.where(number > 0, total / np.maximum(number, 1), math.nan)
