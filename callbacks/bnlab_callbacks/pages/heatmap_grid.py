"""Values by layer and step in bounded memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bnlab_callbacks.core.naming import place_of

_CELL = 3  # sum and number of the finite values, number of −inf


class Grid:
    """A table of values, layers × steps, with at most `max_columns` columns.

    A column holds the steps from a multiple of `width` to the next, and each cell the mean of its finite values. The
    `width` is 1 until there are too many columns; then it is doubled, and neighbours are merged. What comes out depends
    on what was added only, not on the order.

    Args:
        max_columns: columns at most, 1 or more.
    """

    def __init__(self, max_columns: int) -> None:
        self.max_columns = max_columns
        self.width = 1
        self._rows: dict[str, int] = {}
        self._first: dict[int, int] = {}  # first step in each column
        # by column: _CELL numbers for each row; rows may be missing at the end
        self._cells: dict[int, array[float]] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step's values by layer; those that are neither finite nor −inf only take up their place."""
        column = step // self.width
        cells = self._cells.setdefault(column, array("d"))
        self._first[column] = min(step, self._first.get(column, step))
        for layer, value in values.items():
            place = _CELL * self._rows.setdefault(layer, len(self._rows))
            if place >= len(cells):
                cells.frombytes(bytes(cells.itemsize * (place + _CELL - len(cells))))
            if math.isfinite(value):
                cells[place] += value
                cells[place + 1] += 1
            elif value == -math.inf:
                cells[place + 2] += 1
        self._merge()

    def _merge(self) -> None:
        while len(self._cells) > self.max_columns:
            narrow, self._cells = self._cells, {}
            first, self._first = self._first, {}
            self.width *= 2
            for column, cells in narrow.items():
                known = self._cells.get(column // 2, array("d"))
                self._cells[column // 2] = _sum(known, cells)
                self._first[column // 2] = min(first[column], self._first.get(column // 2, first[column]))

    def __len__(self) -> int:
        return len(self._cells)

    def table(self) -> tuple[Tensor, list[int], list[str]]:
        """What is known now.

        Returns:
            float64 values (layers, columns): the mean of the finite values; −inf where there is none but some −inf;
            else NaN. The first step in each column. The layers, by their numbers `NN`.
        """
        layers = sorted(self._rows, key=place_of)
        cells = self._stacked()[:, [self._rows[layer] for layer in layers]]
        total, finite, lowest = cells.unbind(-1)
        none = torch.where(lowest > 0, -math.inf, math.nan)
        steps = [self._first[column] for column in sorted(self._cells)]
        return torch.where(finite > 0, total / finite, none).T, steps, layers

    def _stacked(self) -> Tensor:
        """(columns, rows, _CELL), columns in order."""
        cells = torch.zeros(len(self._cells), len(self._rows) * _CELL, dtype=torch.float64)
        for index, column in enumerate(sorted(self._cells)):
            numbers = torch.tensor(self._cells[column], dtype=torch.float64)
            cells[index, : len(numbers)] = numbers
        return cells.view(len(self._cells), len(self._rows), _CELL)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, lists and a tensor."""
        columns = sorted(self._cells)
        first, rows = [self._first[column] for column in columns], list(self._rows)
        return {"width": self.width, "rows": rows, "columns": columns, "first": first, "cells": self._stacked()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self.width = state["width"]
        self._rows = {layer: row for row, layer in enumerate(state["rows"])}
        self._first = dict(zip(state["columns"], state["first"], strict=True))
        self._cells = {
            column: array("d", cells.flatten().tolist())
            for column, cells in zip(state["columns"], state["cells"], strict=True)
        }
        self._merge()


def _sum(one: array[float], other: array[float]) -> array[float]:
    short, long = sorted((one, other), key=len)
    return array("d", [a + b for a, b in zip(short, long, strict=False)]) + long[len(short) :]
