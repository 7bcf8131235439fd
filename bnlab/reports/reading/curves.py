"""Curves of a run, read from its records: scalars by epoch, quantities of layers by step."""

import csv
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnlab.reports.reading.run import Run, clean
from bnlab_callbacks import Row, read_records

SCALARS = ("train_loss", "val_acc", "time/epoch_s")


class LayerTable(NamedTuple):
    """One quantity of every layer: values (layers, steps), NaN where nothing was recorded."""

    values: NDArray[np.float64]
    steps: NDArray[np.float64]
    layers: tuple[str, ...]


@dataclass
class Curves:
    """The curves of one run."""

    scalars: dict[str, dict[int, float]] = field(default_factory=dict)  # by quantity and epoch
    layers: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)  # by quantity, layer and step
    problem: str = ""  # the reason why there are no records, or not all

    def by_epoch(self, quantity: str, scale: float = 1) -> tuple[list[int], list[float]]:
        """The recorded epochs, counted from 1, and `scale` times their values."""
        known = sorted(self.scalars.get(quantity, {}).items())
        return [epoch + 1 for epoch, _ in known], [scale * value for _, value in known]

    def table(self, quantity: str) -> LayerTable | None:
        """A quantity over layers (in order of execution) and steps; None if it was not recorded."""
        found = self.layers.get(quantity, {})
        steps = sorted({step for values in found.values() for step in values})
        if not steps:
            return None
        layers = tuple(sorted(found, key=_layer_number))
        values = [[found[layer].get(step, math.nan) for step in steps] for layer in layers]
        return LayerTable(np.array(values), np.array(steps, dtype=float), layers)


CurvesOf = Callable[[Run], Curves]


def read_curves(folder: Path, quantities: Collection[str] = ("grad_mean_abs",)) -> Curves:
    """Read the records of a run: `SCALARS`, and `quantities` of each layer.

    A missing or broken table is no error: `problem` says what was wrong, and the rows before the fault are kept.
    Where a run was resumed from an earlier epoch, the rows of later epochs are dropped.
    """
    curves = Curves()
    names = [name for name in ("records.csv", "records.parquet") if (folder / name).is_file()]
    if not names:
        curves.problem = "no records.csv"
        return curves
    rows: list[Row] = []
    try:
        for row in read_records(folder / names[0]):
            if row.quantity in SCALARS or (row.layer and row.quantity in quantities):
                if rows and row.epoch < rows[-1].epoch:  # resumed from an earlier epoch
                    rows = [one for one in rows if (one.step <= row.step if one.layer else one.epoch <= row.epoch)]
                rows.append(row)
    except (OSError, ValueError, OverflowError, ImportError, csv.Error) as error:
        curves.problem = f"{names[0]} is broken: {clean(error)}"
    for row in rows:  # of several rows of one moment the last counts
        if row.layer:
            curves.layers.setdefault(row.quantity, {}).setdefault(row.layer, {})[row.step] = row.value
        else:
            curves.scalars.setdefault(row.quantity, {})[row.epoch] = row.value
    return curves


def _layer_number(layer: str) -> tuple[int, str]:
    digits = layer.partition("_")[0]
    return (int(digits) if digits.isdecimal() else 0, layer)
