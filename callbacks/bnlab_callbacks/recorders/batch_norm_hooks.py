"""Hooks on batch-norm modules: what each forward pass of a recorded training step leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnlab_callbacks.core.forward_order import Gate
from bnlab_callbacks.core.naming import clean_name, name_calls
from bnlab_callbacks.recorders.activation_hooks import is_dense_float
from bnlab_callbacks.statistics.batch_norm import affine_statistics, running_gap, values_a_channel


class BatchNormCall(NamedTuple):
    """One forward pass of one batch-norm module in training mode."""

    layer: str
    gap: dict[str, Tensor]  # 0-dimensional; what depends on the batch
    affine: dict[str, Tensor]  # 0-dimensional; what does not


class BatchNormCalls:
    """What all hooks of one monitor share: the switch and the calls, in order of execution."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.spent = 0.0  # seconds
        self.calls: list[BatchNormCall] = []
        self.failure: str | None = None

    def pop(self) -> list[BatchNormCall]:
        """The calls so far; start anew."""
        calls, self.calls = self.calls, []
        return calls


class BatchNormHook:
    """A forward pre-hook, so that it sees the running statistics before the layer updates them.

    An object, since closures cannot be pickled; in copies and pickles of its module it records nothing.
    """

    def __init__(self, layer: str, wanted: bool, into: BatchNormCalls) -> None:
        self.layer = layer
        self.wanted = wanted
        self.into = into

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        compiling = torch.compiler.is_compiling()
        if compiling:
            self.into.gate.compiled = True
        if not self.into.gate.open or not module.training:
            return
        x = args[0] if args else kwargs.get("input")
        if compiling:
            self.record(module, x)
            return
        start = perf_counter()
        try:
            self.record(module, x)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            self.into.failure = f"{type(error).__name__} at {self.layer}: {error}"
        self.into.spent += perf_counter() - start

    def record(self, module: Any, x: Any) -> None:
        """Leave one call's statistics; only its name where the filter keeps the layer out."""
        gap: dict[str, Tensor] = {}
        affine: dict[str, Tensor] = {}
        if self.wanted:
            with torch.no_grad():
                tracked = module.track_running_stats and module.running_mean is not None
                if tracked and is_dense_float(x) and values_a_channel(x) > 1:
                    gap = running_gap(x.detach(), module.running_mean, module.running_var, module.eps)
                affine = affine_statistics(module.weight, module.bias)
        self.into.calls.append(BatchNormCall(self.layer, gap, affine))

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchNormHook:
        return BatchNormHook(self.layer, False, BatchNormCalls())

    def __reduce__(self) -> tuple[type[BatchNormHook], tuple[str, bool, BatchNormCalls]]:
        return BatchNormHook, (self.layer, False, BatchNormCalls())


def find_batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Batch-norm modules (also SyncBatchNorm) with their layers' names, in order of definition."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            yield clean_name(name) or type(module).__name__, module


def name_values(calls: list[BatchNormCall]) -> list[tuple[str, dict[str, Tensor]]]:
    """The values of one batch's calls by name: the layer's own, then `<layer>#2`, …; γ and β at the first call only."""
    names = name_calls(layer for layer, _, _ in calls)
    return [
        (name, gap | affine if name == layer else gap) for name, (layer, gap, affine) in zip(names, calls, strict=True)
    ]


def tag_values(
    named: list[tuple[str, dict[str, Tensor]]], numbered: Mapping[str, str]
) -> tuple[list[str], list[Tensor]]:
    """Tags `<quantity>/<NN>_<layer>` and values; a tag stands as often as there are accumulated batches."""
    rows = [(f"{quantity}/{numbered[key]}", value) for key, values in named for quantity, value in values.items()]
    return [tag for tag, _ in rows], [value for _, value in rows]
