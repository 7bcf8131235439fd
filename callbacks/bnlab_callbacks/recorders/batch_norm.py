"""The recorder of batch-norm layers: running against batch statistics, γ and β, in recorded training steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnlab_callbacks.core.device import Change, to_host
from bnlab_callbacks.core.hooks import ModuleHook
from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.core.rank_means import Gathered, RankMeans, average
from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment, Table
from bnlab_callbacks.recorders.activations import is_dense_float
from bnlab_callbacks.recorders.call_names import CallKey, CallNames
from bnlab_callbacks.recorders.forward_recorder import ForwardRecorder, Reader
from bnlab_callbacks.recorders.tables import Tables
from bnlab_callbacks.statistics.batch_norm import affine_statistics, running_gap, values_a_channel


class _Call(NamedTuple):
    """One forward pass of one batch-norm module in training mode; values are 0-dimensional."""

    layer: str
    gap: dict[str, Tensor]  # what depends on the batch
    affine: dict[str, Tensor]  # what does not


class BatchNormStep(NamedTuple):
    """A recorded step: all calls' names in order of execution, and values named `<quantity>/<call>`."""

    names: list[str]
    gathered: Gathered
    layer_of: dict[str, str]  # call → its layer

    def change_tensors(self, change: Change) -> BatchNormStep:
        """The same with other tensors."""
        return self._replace(gathered=self.gathered.change_tensors(change))


class _Hook(ModuleHook):
    """A forward pre-hook, so that it sees the running statistics before the layer updates them.

    Attributes:
        wanted: whether some reader wants the layer.
    """

    into: BatchNormRecorder

    def __init__(self, layer: str, eps: float, into: BatchNormRecorder) -> None:
        super().__init__(layer, into)
        self.eps = eps
        self.wanted = False

    def record(self, module: Any, *given: Any) -> None:
        """Leave one call's statistics; only its name where no reader wants the layer."""
        args, kwargs = given
        tracked = module.track_running_stats and module.running_mean is not None
        running = (module.running_mean, module.running_var) if tracked else None
        self._leave(args[0] if args else kwargs.get("input"), running, module.weight, module.bias)

    def tensors(self, module: Any, *given: Any) -> list[Tensor] | None:
        """The input, the running statistics, γ and β; an empty tensor for what there is not."""
        args, kwargs = given
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor):
            return None
        tracked = module.track_running_stats and module.running_mean is not None
        found = [x, *((module.running_mean, module.running_var) if tracked else (None, None))]
        return [x.new_empty(0) if one is None else one.detach() for one in (*found, module.weight, module.bias)]

    def record_tensors(self, tensors: list[Tensor]) -> None:
        """Leave one call's statistics."""
        x, mean, var, weight, bias = (tensor if tensor.numel() else None for tensor in tensors)
        self._leave(x, None if mean is None or var is None else (mean, var), weight, bias)

    def _leave(self, x: Any, running: tuple[Tensor, Tensor] | None, weight: Tensor | None, bias: Tensor | None) -> None:
        gap: dict[str, Tensor] = {}
        affine: dict[str, Tensor] = {}
        if self.wanted:
            with torch.no_grad():
                if running is not None and is_dense_float(x) and values_a_channel(x) > 1:
                    gap = running_gap(x.detach(), *running, self.eps)
                affine = affine_statistics(weight, bias)
        self.into.calls.append(_Call(self.layer, gap, affine))


class BatchNormRecorder(ForwardRecorder):
    """Records what batch-norm modules (`nn.BatchNorm1d`, …, `nn.SyncBatchNorm`) in training mode are given, and γ, β.

    A step's values are means over its accumulated batches and over ranks.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.calls: list[_Call] = []
        self.layers: list[str] = []
        self._hooks: list[_Hook] = []
        self._means = RankMeans(ranks)
        super().__init__(model, ranks)
        self._names = CallNames(self.layers)
        self._layer_of: dict[str, str] = {}  # calls → layers

    def watch(self, model: nn.Module) -> None:
        """Hook every batch-norm module."""
        for name, module in find_batch_norms(model):
            hook = _Hook(name or type(module).__name__, module.eps, self)
            self._hooks.append(hook)
            self.layers.append(hook.layer)
            self.hooks.add(partial(module.register_forward_pre_hook, hook, with_kwargs=True))

    def join(self, reader: Reader) -> None:
        """Record for one more reader."""
        super().join(reader)
        for hook in self._hooks:
            hook.wanted |= reader.wants(hook.layer)

    def pop_calls(self) -> list[tuple[str, dict[str, Tensor]]]:
        """The batch's values by call: named like the layer, then `<layer>.2`, …; γ and β at the first call only."""
        calls, self.calls = self.calls, []
        names = self._names.name([CallKey(call.layer) for call in calls])
        self._layer_of.update(zip(names, (call.layer for call in calls), strict=True))
        return [
            (name, gap | affine if name == layer else gap)
            for name, (layer, gap, affine) in zip(names, calls, strict=True)
        ]

    def leave_step(self, moment: Moment, calls: list[tuple[str, dict[str, Tensor]]]) -> BatchNormStep | None:
        """The step's values, exchanged among ranks; a name stands as often as there are accumulated batches."""
        named = [(f"{quantity}/{name}", value) for name, values in calls for quantity, value in values.items()]
        failed = self.failure is not None
        gathered = self._means.gather([name for name, _ in named], [value for _, value in named], failed)
        if not gathered.values:
            return None
        return BatchNormStep([name for name, _ in calls], gathered, self._layer_of)


class BatchNormTables(Tables):
    """Turns what `BatchNormRecorder` left into tables, for one reader."""

    def read(self, steps: Sequence[BatchNormStep]) -> list[Table]:
        """Tables of recorded steps, whose tensors are on the host."""
        numbers = iter(to_host([value for step in steps for value in step.gathered.values]))
        tables: list[Table] = []
        for step in steps:
            self.number(step.names)
            averaged = average(step.gathered, list(islice(numbers, len(step.gathered.values))))
            self.note(averaged.agreement)
            tables.append(Table.of(dict(self._tags(averaged.values, step.layer_of))))
        return tables

    def _tags(self, values: dict[str, float], layer_of: dict[str, str]) -> Iterator[tuple[str, float]]:
        for name, value in values.items():
            quantity, _, call = name.partition("/")
            if self.wants(layer_of[call]):
                yield f"{quantity}/{self.numbered[call]}", value


def find_batch_norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Batch-norm modules (also SyncBatchNorm) with their names, in order of definition."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            yield clean_name(name), module
