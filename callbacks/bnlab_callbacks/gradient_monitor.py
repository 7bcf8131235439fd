"""`GradientMonitor`: per-layer statistics of the gradient that each optimizer step uses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bnlab_callbacks.core.device import Change
from bnlab_callbacks.core.forward_order import ForwardOrder
from bnlab_callbacks.core.lightning.monitor import Monitor, never_break_training
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer
from bnlab_callbacks.core.lightning.records import Table
from bnlab_callbacks.core.lightning.scalars import to_host
from bnlab_callbacks.core.naming import number
from bnlab_callbacks.core.weights import Weight, cache_sized, find_weights, real
from bnlab_callbacks.recorders.gradient_parts import Part, joined_moves, joined_sums
from bnlab_callbacks.statistics.chunks import Scratch, flat
from bnlab_callbacks.statistics.gradients import (
    depth_slope,
    gradient_statistics,
    gradient_sums,
    stored_values,
    update_norms,
    update_ratio,
)
from bnlab_callbacks.statistics.packed_layers import PackedLayers, can_pack

# sets of small layers whose buffers are kept
_LAYOUTS = 8


class GradientMonitor(Monitor):
    """Records, layer by layer, the gradient of an optimizer step and the update that came of it.

    The gradient is the effective one: averaged over accumulated batches and over ranks, free of the loss scale, before
    clipping. A layer is a parameter with two or more dimensions (weights of linear, convolution, embedding, recurrent
    and attention layers; neither biases nor the scales of norms: a bias before batch norm has a gradient of rounding
    noise that looks like a vanishing one). Layers whose gradient is None are not logged. All values are computed in
    float32 or wider.

    Logs, for each layer, `NN` being its place in the order of execution:

    - `grad_mean_abs/<NN>_<layer>`: ‖g‖₁/n, the "mean gradients" of Schilling 2016, figures 7.6 ff.
    - `grad_mean/<NN>_<layer>`: Σg/n
    - `grad_rms/<NN>_<layer>`: ‖g‖₂/√n
    - `grad_zero_frac/<NN>_<layer>`: share of elements that are exactly 0
    - `grad_nonfinite/<NN>_<layer>`: number of NaN and infinite elements
    - `update_ratio/<NN>_<layer>`: log10(‖Δw‖₂/‖w‖₂), from the weights before and after the step; −inf if none moved

    and for all layers together

    - `grad_depth_slope`: least-squares slope of log10 `grad_rms` against depth: 10^slope is the factor from a layer to
      the next one. Clearly above 0 gradients vanish on their way back to the input, clearly below they explode

    and at the end of each epoch the means over its records as `<quantity>_epoch/<NN>_<layer>`, without the records that
    are not finite: these (overflows of a loss scaler, say) are counted in `grad_nonfinite_steps_epoch/<NN>_<layer>`.
    The epoch values are in `trainer.callback_metrics` too, the last record in the attribute `latest`.

    With several optimizers each layer is recorded at the first step of its optimizer in each interval. Strategies that
    shard parameters (FSDP, DeepSpeed, ModelParallel) are refused with a warning. The update ratio needs a copy of the
    watched weights, made once.

    Args:
        every_n_steps: optimizer steps between two records; None for the Trainer's `log_every_n_steps`. The first
            step of the run and of every epoch is always recorded.
        layers: regular expression searched in layer names, for example `conv|fc1`; None for all layers.
        update_ratio: whether to record the update ratio.
        enabled: False switches the callback off.
        budget: largest share of the training time that this callback may take (0.01 for 1 %): it then records
            less often than `every_n_steps` says; None for no limit.

    Raises:
        ValueError: `every_n_steps` below 1, `budget` not above 0, or `layers` no regular expression.
    """

    idle_hooks = ("on_before_optimizer_step", "on_train_batch_end")

    def __init__(
        self,
        every_n_steps: int | None = None,
        layers: str | None = None,
        update_ratio: bool = True,
        enabled: bool = True,
        budget: float | None = None,
    ) -> None:
        super().__init__(every_n_steps, layers, enabled, budget)
        self.update_ratio = update_ratio
        self._scratch = Scratch()
        self._forget()

    def _forget(self) -> None:
        self._weights: list[Weight] = []
        self._order: ForwardOrder | None = None
        self._numbered: dict[str, str] = {}
        self._streams: tuple[str, ...] = ()
        self._small: set[str] = set()
        self._owned: dict[str, tuple[list[int], dict[int, Weight]]] = {}
        self._taken: list[Part] = []
        self._packed: dict[tuple[str, ...], list[tuple[tuple[Weight, ...], PackedLayers]]] = {}
        self._before: dict[str, Tensor] = {}
        self._nonfinite_steps: dict[str, int] = defaultdict(int)
        self._scratch.clear()

    def stop(self) -> None:
        """Remove hooks, free buffers."""
        super().stop()
        if self._order is not None:
            self._order.remove()
        self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the weights and start to watch the order in which their modules run."""
        self.stop()
        if self.start(trainer):
            self._nonfinite_steps.update(self._loaded.get("nonfinite_steps", {}))
            self._weights = list(find_weights(pl_module))
            holders = {weight.module for weight in self._weights}
            self._order = ForwardOrder((n, m) for n, m in pl_module.named_modules() if n in holders)

    def rests_until(self, trainer: Trainer) -> int:
        """When a step of one of the optimizers is recorded next."""
        return 0 if self._order is not None or self._taken else self.schedule.next_step(trainer, self._streams)

    def before_batch(self, trainer: Trainer) -> None:
        """Watch the order of execution until it is known."""
        if self._order is not None:
            self._order.gate.open = True

    @never_break_training
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradient sums of this optimizer's layers: whole window, all ranks, unscaled, before clipping."""
        if self._order is not None:
            self._number_layers(self._order)
            self._streams = tuple(str(index) for index in range(len(trainer.optimizers)))
        stream = _optimizer_name(trainer, optimizer)
        due = self.schedule.due(trainer, stream)
        if not due and not self._taken:
            return
        owned = self._owned_by(optimizer, stream)
        self._measure_updates(owned)  # of this optimizer's step before, if it makes several within one batch
        if not due:
            return
        self.schedule.mark(trainer, stream)
        taken = {weight.layer for part in self._taken for weight in part.weights}
        weights = [weight for weight in owned.values() if weight.layer not in taken and weight.has_gradient]
        with torch.no_grad():
            self._take(weights, remaining_loss_scale(trainer, optimizer))

    def _owned_by(self, optimizer: Optimizer, stream: str) -> dict[int, Weight]:
        """The watched weights among an optimizer's parameters, by the parameter's identity."""
        identities = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        known, owned = self._owned.get(stream, ([], {}))
        if identities != known:
            wanted = set(identities)
            owned = {id(w.parameter): w for w in self._weights if id(w.parameter) in wanted}
            self._owned[stream] = identities, owned
        return owned

    def _take(self, weights: list[Weight], scale: float) -> None:
        """Take the sums of these layers' gradients, and keep the layers as they are."""
        alone: list[Weight] = []
        small: list[Weight] = []
        for weight in weights:
            dense = weight.gradient.layout == torch.strided
            (small if dense and weight.layer in self._small else alone).append(weight)
        for group, packed in self._pack(small):
            sums = packed.sums([weight.gradient for weight in group])
            if sums is None:
                alone += group
                continue
            if self.update_ratio:
                packed.remember([weight.parameter for weight in group])
            self._taken.append(Part(group, scale, packed, sums))
        for weight in alone:
            values = stored_values(weight.gradient)
            alone_sums = gradient_sums(values, self._scratch)
            self._taken.append(Part((weight,), scale, None, (*alone_sums, values.numel())))
            self._remember(weight)

    def _pack(self, weights: list[Weight]) -> list[tuple[tuple[Weight, ...], PackedLayers]]:
        """Small layers in groups of cache size, with their buffers."""
        layers = tuple(weight.layer for weight in weights)
        if layers not in self._packed:
            if len(self._packed) >= _LAYOUTS:  # layers that come and go
                self._packed.clear()
            groups = cache_sized(weights)
            self._packed[layers] = [(group, PackedLayers([w.parameter.shape for w in group])) for group in groups]
        return self._packed[layers]

    def after_batch(self, trainer: Trainer) -> None:
        """Keep what the steps of this batch left."""
        if self._taken:
            self._keep_taken(trainer)

    @never_break_training
    def _keep_taken(self, trainer: Trainer) -> None:
        self._measure_updates(None)
        taken, self._taken = self._taken, []
        self.keep(trainer, taken)

    def _measure_updates(self, owned: dict[int, Weight] | None) -> None:
        """Measure what the recorded steps did to the weights; `owned` are an optimizer's parameters, None for all."""
        if not self.update_ratio:
            return
        with torch.no_grad():
            for index, part in enumerate(self._taken):
                if not part.moved and (owned is None or id(part.weights[0].parameter) in owned):
                    self._taken[index] = part._replace(moved=self._moved(part))

    def _moved(self, part: Part) -> tuple[Any, ...]:
        if part.packed:
            return part.packed.moved([weight.parameter for weight in part.weights])
        (weight,) = part.weights
        return update_norms(self._before[weight.layer], flat(real(weight.parameter.detach())), self._scratch)

    def epoch_values(self, trainer: Trainer) -> dict[str, float]:
        """The number of steps whose gradient was not finite."""
        values = {f"grad_nonfinite_steps_epoch/{name}": float(n) for name, n in self._nonfinite_steps.items()}
        self._nonfinite_steps = defaultdict(int, dict.fromkeys(self._nonfinite_steps, 0))
        return values

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return super().state_dict() | {"nonfinite_steps": dict(self._nonfinite_steps)}

    def _number_layers(self, order: ForwardOrder) -> None:
        """Fix the layers' numbers, once: a tag must not change its name during a run."""
        self._numbered = number(order.sort([(weight.layer, weight.module) for weight in self._weights]))
        self._weights = [weight for weight in self._weights if self.wants(weight.layer)]
        self._small = {weight.layer for weight in self._weights if can_pack(weight.parameter)}
        order.remove()
        self._order = None
        if not self._weights:
            self.give_up(f"no layer's name matches layers={self.layers!r}; there are: {', '.join(self._numbered)}.")

    def _remember(self, weight: Weight) -> None:
        if self.update_ratio:
            now = flat(real(weight.parameter.detach()))
            if weight.layer in self._before:
                self._before[weight.layer].copy_(now)
            else:
                self._before[weight.layer] = now.clone()

    def change_tensors(self, taken: list[Part], change: Change) -> list[Part]:
        """Of layers by themselves; small ones that were packed are on the host."""
        return [part.change_tensors(change) for part in taken]

    def records_now(self, trainer: Trainer) -> bool:
        """Whether the coming step is recorded; with several optimizers, the first one's."""
        return self.schedule.due(trainer, "0")

    def read(self, kept: Sequence[list[Part]]) -> list[Table]:
        """Tables of the recorded steps."""
        alone = [part for step in kept for part in step if part.packed is None]
        numbers = iter(to_host([value for part in alone for value in (*part.sums, *part.moved)]))
        read = {
            id(part): part._replace(
                sums=tuple(islice(numbers, len(part.sums))), moved=tuple(islice(numbers, len(part.moved)))
            )
            for part in alone
        }
        steps = [[read.get(id(part), part) for part in step] for step in kept]
        return [self._table(list(alike)) for _, alike in groupby(steps, key=lambda step: [part.key for part in step])]

    def _table(self, steps: list[list[Part]]) -> Table:
        """The table of K steps of the same parts."""
        parts = list(zip(*steps, strict=True))
        weights = [weight for same in parts for weight in same[0].weights]
        names = [self._numbered[weight.layer] for weight in weights]
        numel = torch.tensor([weight.numel for weight in weights], dtype=torch.float64)
        sums = torch.cat([joined_sums(same) for same in parts], 1)
        scale = sums.new_tensor([[part.scale for part in step for _ in part.weights] for step in steps])
        statistics = gradient_statistics(sums, numel, scale)
        for name, count in zip(names, (statistics["grad_nonfinite"] > 0).sum(0).tolist(), strict=True):
            self._nonfinite_steps[name] += count
        if parts[0][0].moved:
            statistics["update_ratio"] = update_ratio(torch.cat([joined_moves(same) for same in parts], 1))
        tags = [f"{quantity}/{name}" for quantity in statistics for name in names]
        columns = list(statistics.values())
        if len(self._weights) > 1:
            rms = sums.new_full((len(steps), len(self._numbered)), math.nan)
            places = {layer: place for place, layer in enumerate(self._numbered)}
            rms[:, [places[weight.layer] for weight in weights]] = statistics["grad_rms"]
            tags.append("grad_depth_slope")
            columns.append(depth_slope(rms)[:, None])
        return Table(tuple(tags), torch.cat(columns, 1))


def remaining_loss_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """The loss scale that is still on the gradients: 1, but for optimizers (fused ones) that unscale in their step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())


def _optimizer_name(trainer: Trainer, optimizer: Optimizer) -> str:
    """The optimizer's place in the Trainer's list, a name that survives a resume."""
    for index, candidate in enumerate(trainer.optimizers):
        if candidate is optimizer:
            return str(index)
    return ""
