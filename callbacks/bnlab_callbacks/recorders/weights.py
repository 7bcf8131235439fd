"""The recorder of weights: norms of a model's matrices at chosen steps, and tables of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnlab_callbacks.core.device import Change, to_host
from bnlab_callbacks.core.hooks import ForwardOrder
from bnlab_callbacks.core.records import Table
from bnlab_callbacks.core.weights import Weight, find_weights
from bnlab_callbacks.recorders.tables import Tables
from bnlab_callbacks.statistics.spectra import as_matrix, norms


class WeightStep(NamedTuple):
    """A recorded step: all layers' names in order of execution, and values named `<quantity>/<layer>`."""

    layers: list[str]
    names: list[str]
    values: list[Tensor]  # 0-dimensional

    def change_tensors(self, change: Change) -> WeightStep:
        """The same with other tensors."""
        return self._replace(values=[change(value) for value in self.values])


class WeightRecorder:
    """Measures the matrices of a model; power iterations go on where they stood at the last time.

    Attributes:
        layers: names of the model's matrices, in order of definition.

    Args:
        model: the model.
        wants: which layers are to be measured.
        vectors: layer → where its power iteration stood, from `state_dict`.
    """

    def __init__(self, model: nn.Module, wants: Callable[[str], bool], vectors: dict[str, Tensor]) -> None:
        self._model = model
        self._wants = wants
        self._vectors = dict(vectors)
        self.layers = [weight.layer for weight in _matrices(model)]
        self._ordered: list[str] = []
        self._order: ForwardOrder | None = ForwardOrder(
            (name, module)
            for name, module in model.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        )

    def begin_batch(self) -> None:
        """Watch the order of execution until it is known."""
        if self._order is not None:
            self._order.gate.open = True

    def close(self) -> None:
        """Take the hooks off; harmless when repeated."""
        if self._order is not None:
            self._order.remove()
        self._order = None

    def record(self) -> WeightStep:
        """Norms of all matrices that are wanted, as they are now."""
        weights = list(_matrices(self._model))  # some may have joined late
        if self._order is not None:
            self._ordered = self._order.sort([(weight.layer, weight.module) for weight in weights])
            self.close()
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            for weight in weights:
                if self._wants(weight.layer):
                    found |= self._measure(weight)
        late = [weight.layer for weight in weights if weight.layer not in self._ordered]
        return WeightStep([*self._ordered, *late], list(found), list(found.values()))

    def _measure(self, weight: Weight) -> dict[str, Tensor]:
        matrix = as_matrix(weight.parameter)
        vector = self._vectors.get(weight.layer)
        known = None if vector is None or vector.shape != matrix.shape[:1] else vector.to(matrix)
        measured = norms(matrix, known)
        self._vectors[weight.layer] = measured.vector
        return {
            f"weight_norm/{weight.layer}": measured.frobenius,
            f"weight_spectral_norm/{weight.layer}": measured.spectral,
            f"weight_stable_rank/{weight.layer}": measured.stable_rank,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Where the power iterations stand."""
        return {layer: vector.cpu() for layer, vector in self._vectors.items()}


class WeightTables(Tables):
    """Turns what `WeightRecorder` left into tables."""

    def read(self, steps: Sequence[WeightStep]) -> list[Table]:
        """Tables of recorded steps, whose tensors are on the host."""
        tables = []
        for step in steps:
            self.number(step.layers)
            tags = (name.partition("/") for name in step.names)
            named = [f"{quantity}/{self.numbered[layer]}" for quantity, _, layer in tags]
            tables.append(Table.of(dict(zip(named, to_host(step.values), strict=True))))
        return tables

    def state_dict(self) -> dict[str, Any]:
        """The layers' numbers."""
        return {"numbered": dict(self.numbered)}


def _matrices(model: nn.Module) -> Iterator[Weight]:
    """Weights with two dimensions or more that hold something, trained or not."""
    for weight in find_weights(model, frozen=True):
        parameter = weight.parameter
        dense = parameter.layout == torch.strided and parameter.is_floating_point() and parameter.device.type != "meta"
        if parameter.ndim > 1 and parameter.numel() and dense:
            yield weight
