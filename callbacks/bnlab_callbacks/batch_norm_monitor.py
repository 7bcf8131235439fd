"""`BatchNormMonitor`: what batch normalization does in a run, layer by layer, and how smooth the loss is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from bnlab_callbacks.core.device import Change
from bnlab_callbacks.core.lightning.monitor import Monitor, never_break_training
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer, rank_zero_warn
from bnlab_callbacks.core.lightning.rank_means import Gathered, RankMeans, average
from bnlab_callbacks.core.lightning.records import Table
from bnlab_callbacks.core.lightning.scalars import to_host
from bnlab_callbacks.core.module_hooks import ModuleHooks
from bnlab_callbacks.core.naming import number
from bnlab_callbacks.core.schedule import RecordSchedule
from bnlab_callbacks.recorders.batch_norm_hooks import (
    BatchNormCalls,
    BatchNormHook,
    find_batch_norms,
    name_values,
    tag_values,
)
from bnlab_callbacks.replica.smoothness import SmoothnessProbe, why_not


@dataclass
class _Window:
    """An optimizer step that is being recorded, over all its accumulated batches."""

    global_step: int
    batch_norm: bool
    smoothness: bool


class _Step(NamedTuple):
    """What a recorded step left; None for what was not due."""

    batch_norm: Gathered | None
    smoothness: Gathered | None

    @property
    def parts(self) -> list[Gathered]:
        return [part for part in (self.batch_norm, self.smoothness) if part is not None]

    def change_tensors(self, change: Change) -> _Step:
        """The same with other tensors."""
        return _Step(*(part and part._replace(values=[change(value) for value in part.values]) for part in self))


class BatchNormMonitor(Monitor):
    """Records batch-norm layers: running against batch statistics, γ and β; on request the smoothness of the loss.

    Batch-norm layers are `nn.BatchNorm1d`, `2d`, `3d`, their lazy forms and `nn.SyncBatchNorm`, in training mode. Only
    forward passes of training steps count: neither sanity checks nor validation, nor what activation checkpointing
    repeats. Values of a step are means over its accumulated batches and over ranks, each batch with its own statistics
    on its rank (with SyncBatchNorm, too). All values are computed in float32 or wider.

    Logs, for each batch-norm layer, `NN` being its place in the order in which these run (the second call of a module
    that is used again is `<layer>#2`, and so on, for the first two):

    - `bn_drift/<NN>_<layer>`: mean over channels of |μ_run − μ_B| / √(σ²_B + ε), the running mean's distance from the
      batch's, in deviations of the batch; the running statistics are those before the step's forward pass, which
      evaluation mode would use; not for layers with `track_running_stats=False`
    - `bn_logvar/…`: mean over channels of |ln((σ²_run + ε) / (s²_B + ε))|, s²_B unbiased as σ²_run is
    - `bn_gamma_mean/…`, `bn_gamma_absmin/…`: mean of the scale γ, and its smallest magnitude, before the update; not
      for layers without γ (`affine=False`)
    - `bn_gamma_small_frac/…`: share of channels with |γ| < 0.05
    - `bn_beta_mean/…`: mean of the shift β, before the update

    With `smoothness_every_n_steps`, for any net (Santurkar et al. 2018, How Does Batch Normalization Help
    Optimization?, arXiv 1805.11604), for the first batch of a recorded step, with the gradient of its loss alone:

    - `smoothness/loss_min`, `smoothness/loss_max`, `smoothness/loss_range`: of the loss at W − ηg, g the gradient over
      all parameters, η ½, 1, 2 and 4 times the (largest) learning rate; and their difference
    - `smoothness/gradient_predictiveness`: largest ‖∇L(W) − ∇L(W − ηg)‖₂ on that way
    - `smoothness/effective_beta`: largest ‖∇L(W) − ∇L(W − ηg)‖₂ / ‖ηg‖₂; NaN where the learning rate is 0
    - `ics_l2/<NN>_<layer>`, `ics_cos/…`: internal covariate shift (definition 2.1), the distance ‖G − G'‖₂ and the
      cosine of the layer's gradients G before and G' after the optimizer step moved the modules that run before it;
      layers and numbers are those of `GradientMonitor`; the first one's are 0 and 1 unless a norm runs before it

    and at the end of each epoch `<quantity>_epoch/…`: the means over its records. The epoch values are in
    `trainer.callback_metrics` too, the last record in the attribute `latest`.

    Smoothness costs, at each step that records it, 5 forward and backward passes of one batch and one more for each
    module with weights but the first, and in memory up to five more sets of parameters and one of activations, freed at
    once. It works on copies of the LightningModule: weights, gradients, running statistics, random numbers, metrics and
    logs of the run are the same with and without; but what a `training_step` does outside its module it does at each
    pass. It is left out, with a warning, with manual optimization, with SyncBatchNorm on several ranks, and where the
    module cannot be copied or its `training_step` not be repeated.

    Args:
        every_n_steps: optimizer steps between two records; None for the Trainer's `log_every_n_steps`. The first
            step of the run and of every epoch is always recorded.
        layers: regular expression searched in layer names, for example `bn1|conv1`; None for all layers.
        smoothness_every_n_steps: optimizer steps between two records of smoothness, again with the first step of the
            run and of every epoch; None for no such record.
        enabled: False switches the callback off.
        budget: largest share of the training time that this callback may take (0.01 for 1 %): it then records
            less often, but still once per epoch; None for no limit.

    Raises:
        ValueError: `every_n_steps` or `smoothness_every_n_steps` below 1, `budget` not above 0, or `layers` no regular
            expression.
    """

    idle_hooks = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end")

    def __init__(
        self,
        every_n_steps: int | None = None,
        layers: str | None = None,
        smoothness_every_n_steps: int | None = None,
        enabled: bool = True,
        budget: float | None = None,
    ) -> None:
        super().__init__(every_n_steps, layers, enabled, budget)
        if smoothness_every_n_steps is not None and smoothness_every_n_steps < 1:
            raise ValueError(
                f"smoothness_every_n_steps={smoothness_every_n_steps} is below 1: give the number of optimizer steps "
                "between two records of smoothness, or None for no such record."
            )
        self.smoothness_every_n_steps = smoothness_every_n_steps
        self._smoothness_schedule = RecordSchedule(smoothness_every_n_steps)
        self._forget()

    def _forget(self) -> None:
        self._calls = BatchNormCalls()
        self._hooks = ModuleHooks(self._calls.gate)
        self._pending: list[tuple[str, dict[str, Tensor]]] = []
        self._numbered: dict[str, str] = {}
        self._probe: SmoothnessProbe | None = None
        self._window: _Window | None = None
        self._batch_norm_ranks, self._smoothness_ranks = RankMeans(), RankMeans()
        self._batch_norm_failed = self._smoothness_failed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run's records."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._smoothness_schedule.restart()

    def stop(self) -> None:
        """Remove hooks, free copies."""
        super().stop()
        self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook every batch-norm module, before anything is compiled."""
        self.stop()
        if not self.start(trainer):
            return
        self._numbered = dict(self._loaded.get("numbered", {}))
        if self.smoothness_every_n_steps is not None:
            self._start_smoothness(trainer, pl_module)
        found = list(find_batch_norms(pl_module))
        if any(self.wants(layer) for layer, _ in found):
            self._hook(found)
        elif self._probe is None:
            self.give_up(_nothing_to_see(self.layers, [layer for layer, _ in found]))

    def _hook(self, found: list[tuple[str, nn.Module]]) -> None:
        for layer, module in found:
            hook = BatchNormHook(layer, self.wants(layer), self._calls)
            self._hooks.add(partial(module.register_forward_pre_hook, hook, with_kwargs=True))

    def _start_smoothness(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reason = why_not(trainer, pl_module)
        if reason is None:
            self._probe = SmoothnessProbe(self.layers, self._loaded.get("smoothness_numbered", {}))
        else:
            rank_zero_warn(f"BatchNormMonitor records no smoothness in this run: {reason}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Prepare for a step, and copy it if its smoothness is due."""
        begun = self._window is None
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if begun and self._window is not None and self._window.smoothness:
            self._copy_step(trainer, pl_module, batch, batch_idx)

    @never_break_training
    def _copy_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._probe is not None:
            self._probe.begin(trainer, pl_module, batch, batch_idx)

    def rests_until(self, trainer: Trainer) -> int:
        """When batch norm or smoothness is recorded next."""
        if self._window is not None:
            return 0
        smoothness = sys.maxsize if self._probe is None else self._smoothness_schedule.next_step(trainer)
        return min(smoothness, self.schedule.next_step(trainer) if self._hooks else sys.maxsize)

    @never_break_training
    def before_batch(self, trainer: Trainer) -> None:
        """Open the hooks for a step that is due, and keep them open over its accumulated batches."""
        if self._window is None:
            batch_norm = bool(self._hooks) and self.schedule.due(trainer)
            smoothness = self._probe is not None and self._smoothness_schedule.due(trainer)
            if batch_norm or smoothness:
                self._window = _Window(trainer.global_step, batch_norm, smoothness)
        self._open()

    def _open(self) -> None:
        self._calls.gate.open = self._window is not None and self._window.batch_norm

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Shut the hooks: forward passes within the backward pass are checkpointing's repetitions."""
        self._calls.gate.open = False

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open them again: with manual optimization, more forward passes may follow in this step."""
        self._open()

    @never_break_training
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note the learning rate of the step."""
        if self._probe is not None:
            self._probe.note_lr(optimizer)

    def after_batch(self, trainer: Trainer) -> None:
        """Take this batch's calls; when they end in an optimizer step, keep the step's values."""
        if self._window is not None:
            self._take_calls(trainer)

    @never_break_training
    def _take_calls(self, trainer: Trainer) -> None:
        self._calls.gate.open = False
        self.overhead.add(self._calls.spent)
        self._calls.spent = 0.0
        self._pending += name_values(self._calls.pop())
        window = self._window
        if window is None or window.global_step == trainer.global_step:  # not recorded, or accumulating
            return
        self._window = None
        step = _Step(
            self._take_batch_norm(trainer) if window.batch_norm else None,
            self._take_smoothness(trainer) if window.smoothness else None,
        )
        if any(part.values or part.failed for part in step.parts):
            self.keep(trainer, step)
            if trainer.world_size == 1 and any(part.failed for part in step.parts):
                self.flush(trainer)
            self._heed_failures()

    def _take_batch_norm(self, trainer: Trainer) -> Gathered:
        """The values of the step's calls, exchanged among ranks."""
        self.schedule.mark(trainer)
        pending, self._pending = self._pending, []
        if not self._numbered:
            self._numbered = number(dict.fromkeys(key for key, _ in pending))
        for key, _ in pending:  # what turns up later gets the next numbers: no tag ever changes its name
            self._numbered.setdefault(key, f"{len(self._numbered):02d}_{key}")
        tags, values = tag_values(pending, self._numbered)
        return self._batch_norm_ranks.gather(trainer, tags, values, self._calls.failure is not None)

    def _take_smoothness(self, trainer: Trainer) -> Gathered:
        """The step's smoothness, exchanged among ranks."""
        assert self._probe is not None
        self._smoothness_schedule.mark(trainer)
        tags, values = self._probe.finish(trainer.lightning_module)
        return self._smoothness_ranks.gather(trainer, tags, values, self._probe.failure is not None)

    def change_tensors(self, taken: _Step, change: Change) -> _Step:
        """See `_Step`."""
        return taken.change_tensors(change)

    def records_now(self, trainer: Trainer) -> bool:
        """Whether batch norm is recorded in this step."""
        return self._window is not None and self._window.batch_norm

    def read(self, kept: Sequence[_Step]) -> list[Table]:
        """Tables of the recorded steps."""
        numbers = iter(to_host([value for step in kept for part in step.parts for value in part.values]))
        tables: list[Table] = []
        for step in kept:
            averaged = [(part, average(part, list(islice(numbers, len(part.values))))) for part in step.parts]
            tables.append(Table.of({tag: value for _, means in averaged for tag, value in means.values.items()}))
            if any(means.different for _, means in averaged):
                rank_zero_warn(
                    "BatchNormMonitor: ranks ran different layers in a recorded step; such steps are left out."
                )
            for part, means in averaged:
                self._smoothness_failed |= means.failed and part is step.smoothness
                self._batch_norm_failed |= means.failed and part is step.batch_norm
        return tables

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish what is kept and the epoch's means."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.active:
            self._heed_failures()

    def _heed_failures(self) -> None:
        """Stop what failed on any rank; on all ranks at once, or those that go on would wait for the others forever."""
        elsewhere = "it failed on another rank."
        if self._batch_norm_failed:
            self.give_up(self._calls.failure or elsewhere)
        elif self._smoothness_failed:
            assert self._probe is not None
            reason = f"smoothness cannot be measured: {self._probe.failure or elsewhere}"
            self._smoothness_failed, self._probe = False, None
            if self._hooks:
                rank_zero_warn(f"BatchNormMonitor goes on without smoothness for the rest of this run: {reason}")
            else:
                self.give_up(reason)

    def _keep_to_budget(self, trainer: Trainer) -> None:
        super()._keep_to_budget(trainer)
        waiting = {"not_before": self.schedule.state_dict()["not_before"]}
        self._smoothness_schedule.load_state_dict(self._smoothness_schedule.state_dict() | waiting)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return super().state_dict() | {
            "numbered": dict(self._numbered),
            "smoothness_schedule": self._smoothness_schedule.state_dict(),
            "smoothness_numbered": {} if self._probe is None else dict(self._probe.numbered),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        super().load_state_dict(state_dict)
        self._smoothness_schedule.load_state_dict(state_dict["smoothness_schedule"])


def _nothing_to_see(pattern: str | None, layers: list[str]) -> str:
    if layers:
        return f"no batch-norm module's name matches layers={pattern!r}; there are: {', '.join(layers)}."
    return (
        "the model has no batch-norm modules. Functional calls such as F.batch_norm(x, …) cannot be seen; use modules "
        "(self.norm = nn.BatchNorm1d(8)) to record them. smoothness_every_n_steps=50 measures the loss of any model."
    )
