"""`GradientMonitor`: per-layer statistics of the gradient that each optimizer step uses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from bnlab_callbacks.chunks import Scratch, flat
from bnlab_callbacks.forward_order import ForwardOrder
from bnlab_callbacks.gradient_statistics import (
    GradientSums,
    depth_slope,
    gradient_statistics,
    gradient_sums,
    stored_values,
    update_norms,
    update_ratio,
)
from bnlab_callbacks.lightning_api import LightningModule, Trainer
from bnlab_callbacks.monitor import Monitor, never_break_training
from bnlab_callbacks.naming import clean_name, number
from bnlab_callbacks.scalars import to_host


class Weight(NamedTuple):
    """A weight tensor that is watched."""

    layer: str
    module: str  # name of the module that holds it
    parameter: nn.Parameter


class _Taken(NamedTuple):
    """What one optimizer step left to be published for one weight."""

    layer: str
    numel: int
    stored: int
    scale: float
    sums: GradientSums


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
        budget: largest share of the training steps' time that this callback may take (0.01 for 1 %): it then records
            less often than `every_n_steps` says; None for no limit.

    Raises:
        ValueError: `every_n_steps` below 1, `budget` not above 0, or `layers` no regular expression.
    """

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
        self._taken: list[tuple[Weight, _Taken]] = []
        self._before: dict[str, Tensor] = {}
        self._updates: dict[str, tuple[Tensor | float, Tensor | float]] = {}
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

    @never_break_training
    def before_batch(self, trainer: Trainer) -> None:
        """Watch the order of execution until it is known."""
        if self._order is not None:
            self._order.gate.open = True

    @never_break_training
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradient sums of this optimizer's layers: whole window, all ranks, unscaled, before clipping."""
        if self._order is not None:
            self._number_layers(self._order)
        stream = _optimizer_name(trainer, optimizer)
        due = self.schedule.due(trainer, stream)
        if not due and not self._taken:
            return
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._measure_updates(owned)  # of this optimizer's step before, if it makes several within one batch
        if not due:
            return
        self.schedule.mark(trainer, stream)
        scale = remaining_loss_scale(trainer, optimizer)
        with torch.no_grad():
            for weight in self._weights:
                grad = weight.parameter.grad
                if id(weight.parameter) in owned and grad is not None and grad.numel():
                    values = stored_values(grad)
                    numel = weight.parameter.numel() * (2 if weight.parameter.is_complex() else 1)
                    sums = gradient_sums(values, self._scratch)
                    self._taken.append((weight, _Taken(weight.layer, numel, values.numel(), scale, sums)))
                    self._remember(weight)

    @never_break_training
    def after_batch(self, trainer: Trainer) -> None:
        """Keep what the steps of this batch left."""
        if not self._taken:
            return
        self._measure_updates(None)
        taken, self._taken = [one for _, one in self._taken], []
        updates, self._updates = self._updates, {}
        self.keep(trainer, (taken, [norm for one in taken for norm in updates.get(one.layer, ())]))

    def _measure_updates(self, owned: set[int] | None) -> None:
        """Measure what the recorded steps did to the weights; `owned` are an optimizer's parameters, None for all."""
        if not self.update_ratio:
            return
        with torch.no_grad():
            for weight, _ in self._taken:
                if weight.layer not in self._updates and (owned is None or id(weight.parameter) in owned):
                    after = flat(_real(weight.parameter.detach()))
                    self._updates[weight.layer] = update_norms(self._before[weight.layer], after, self._scratch)

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
        order.remove()
        self._order = None
        if not self._weights:
            self.give_up(f"no layer's name matches layers={self.layers!r}; there are: {', '.join(self._numbered)}.")

    def _remember(self, weight: Weight) -> None:
        if self.update_ratio:
            now = flat(_real(weight.parameter.detach()))
            if weight.layer in self._before:
                self._before[weight.layer].copy_(now)
            else:
                self._before[weight.layer] = now.clone()

    def read(self, kept: Sequence[tuple[list[_Taken], list[Tensor | float]]]) -> list[dict[str, float]]:
        """Tags and values of the recorded steps, through one copy off the device."""
        tensors = [tensor for taken, updates in kept for tensor in (*(t for one in taken for t in one.sums), *updates)]
        values = iter(to_host(tensors))
        return [self._statistics(taken, values, bool(updates)) for taken, updates in kept]

    def _statistics(self, taken: list[_Taken], values: Iterator[float], updated: bool) -> dict[str, float]:
        """Tags and values of one step's layers; takes its share of `values`, which lie as `read` packed them."""
        metrics: dict[str, float] = {}
        for layer, numel, stored, scale, sums in taken:
            name = self._numbered[layer]
            statistics = gradient_statistics(tuple(islice(values, len(sums))), stored, numel, scale)
            metrics |= {f"{quantity}/{name}": value for quantity, value in statistics.items()}
            self._nonfinite_steps[name] += statistics["grad_nonfinite"] > 0
        rms = {layer: metrics[f"grad_rms/{self._numbered[layer]}"] for layer, *_ in taken}
        if len(self._weights) > 1:
            metrics["grad_depth_slope"] = depth_slope([rms.get(layer, math.nan) for layer in self._numbered])
        for one in taken if updated else ():
            metrics[f"update_ratio/{self._numbered[one.layer]}"] = update_ratio(next(values), next(values))
        return metrics


def find_weights(model: nn.Module) -> Iterator[Weight]:
    """Trainable parameters with two or more dimensions, in order of definition; a shared one once.

    The layer is called like its module where that holds one such parameter named `weight`, else `<module>.<parameter>`.
    """
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = {
            key: parameter
            for key, parameter in module.named_parameters(recurse=False)
            if not isinstance(parameter, UninitializedParameter) and parameter.ndim > 1 and parameter.requires_grad
        }
        for key, parameter in own.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                layer = name if list(own) == ["weight"] else f"{name}.{key}"
                yield Weight(clean_name(layer) or key, name, parameter)


def remaining_loss_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """The loss scale that is still on the gradients: 1, but for optimizers (fused ones) that unscale in their step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())


def _real(weight: Tensor) -> Tensor:
    return torch.view_as_real(weight) if weight.is_complex() else weight


def _optimizer_name(trainer: Trainer, optimizer: Optimizer) -> str:
    """The optimizer's place in the Trainer's list, a name that survives a resume."""
    return next((str(i) for i, candidate in enumerate(trainer.optimizers) if candidate is optimizer), "")
