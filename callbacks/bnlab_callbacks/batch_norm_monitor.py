"""`BatchNormMonitor`: running statistics, γ and β of batch-norm layers, and on request the smoothness of the loss."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.lightning.forward_monitor import ForwardMonitor
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer, rank_zero_warn
from bnlab_callbacks.core.lightning.repeatable_step import LightningStep, why_not
from bnlab_callbacks.core.rank_means import Gathered
from bnlab_callbacks.core.records import Moment, Table
from bnlab_callbacks.core.schedule import RecordSchedule
from bnlab_callbacks.recorders.batch_norm import BatchNormRecorder, BatchNormStep, BatchNormTables
from bnlab_callbacks.recorders.tables import ELSEWHERE
from bnlab_callbacks.replica.smoothness import SmoothnessProbe, SmoothnessTables
from bnlab_callbacks.replica.step_replica import StepReplica


class BatchNormMonitor(ForwardMonitor):
    """Records batch-norm layers: running against batch statistics, γ and β; on request the smoothness of the loss.

    Batch-norm layers are `nn.BatchNorm1d`, `2d`, `3d`, their lazy forms and `nn.SyncBatchNorm`, in training mode. Only
    forward passes of training steps count: neither sanity checks nor validation, nor what activation checkpointing
    repeats. Values of a step are means over its accumulated batches and over ranks, each batch with its own statistics
    on its rank (with SyncBatchNorm, too). All values are computed in float32 or wider.

    Logs, for each batch-norm layer, `NN` being its place in the order in which these run (the second call of a module
    that is used again is `<layer>.2`, and so on, for the first two):

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
        self._tables = BatchNormTables(self.wants)
        self._smoothness_tables = SmoothnessTables()
        self._probe: SmoothnessProbe | None = None
        self._smoothness_began: int | None = None  # optimizer steps made before the step that is being measured

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run's records."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._smoothness_schedule.restart()

    def close(self) -> None:
        """Take the hooks off, free copies."""
        super().close()
        self._forget()

    def watch(self, trainer: Trainer, model: nn.Module) -> None:
        """Join the recorder of batch norm, which hooks every batch-norm module."""
        self._tables.numbered = dict(self._loaded.get("numbered", {}))
        if self.smoothness_every_n_steps is not None:
            self._start_smoothness(trainer)
        layers = self.join(BatchNormRecorder, model).layers
        if not any(map(self.wants, layers)):
            self.leave()
            if self._probe is None:
                self.give_up(_nothing_to_see(self.layers, layers))

    def _start_smoothness(self, trainer: Trainer) -> None:
        assert self._publisher is not None
        reason = why_not(trainer, trainer.lightning_module)
        if reason is None:
            numbered = self._loaded.get("smoothness_numbered", {})
            self._smoothness_schedule.start(0)
            self._probe = SmoothnessProbe(self.layers, numbered, self._publisher.recorders.ranks)
        else:
            rank_zero_warn(f"BatchNormMonitor records no smoothness in this run: {reason}")

    @property
    def never_due(self) -> bool:
        """Whether neither batch norm nor smoothness has an interval."""
        return super().never_due and self.smoothness_every_n_steps is None

    # batch norm

    def end_batch(self, trainer: Trainer) -> None:
        """Take this batch's calls; when they end in an optimizer step, the step is recorded."""
        super().end_batch(trainer)
        if self._smoothness_began is not None and self._smoothness_began != trainer.global_step:
            self._end_smoothness(trainer)

    def take(self, moment: Moment, left: BatchNormStep, seconds: float) -> None:
        """Keep what a step left."""
        self.keep(left, self._read, seconds)

    def _read(self, steps: Sequence[BatchNormStep]) -> list[Table]:
        return self._read_with(self._tables, steps)

    def _read_smoothness(self, steps: Sequence[Gathered]) -> list[Table]:
        return self._read_with(self._smoothness_tables, steps)

    def _read_with(self, tables: BatchNormTables | SmoothnessTables, steps: Sequence[Any]) -> list[Table]:
        read = tables.read(steps)
        if tables.different:
            tables.different = False
            rank_zero_warn("BatchNormMonitor: ranks ran different layers in a recorded step; such steps are left out.")
        return read

    # smoothness

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Prepare for a step, and copy it if its smoothness is due."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._probe is None or self._smoothness_began is not None:
            return
        if self._smoothness_schedule.due(self._moment):
            self._begin_smoothness(trainer, pl_module, batch, batch_idx)

    @keeps_training
    def _begin_smoothness(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self._probe is not None
        self._smoothness_began = trainer.global_step
        with self.overhead.measure():
            self._probe.begin(lambda: StepReplica(LightningStep(trainer, batch_idx), pl_module, batch))

    @keeps_training
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note the learning rate of the step."""
        if self._probe is not None:
            self._probe.note_lr(optimizer)

    def _end_smoothness(self, trainer: Trainer) -> None:
        assert self._probe is not None
        self._smoothness_began = None
        self._smoothness_schedule.mark(self._moment)
        with self.overhead.measure():
            left = self._probe.finish(trainer.lightning_module)
        self.keep(left, self._read_smoothness)
        if trainer.world_size == 1 and self._probe.failure:
            self._publish_kept()

    # both

    def heed_failures(self) -> None:
        """Stop what failed on any rank: on all of them at once, or those that go on would wait for others."""
        if self._tables.failed and self._recorder is not None:
            self.give_up(self._recorder.failure or ELSEWHERE)
        elif self._smoothness_tables.failed and self._probe is not None:
            reason = f"smoothness cannot be measured: {self._probe.failure or ELSEWHERE}"
            self._probe = self._smoothness_began = None
            if self._recorder is not None:
                rank_zero_warn(f"BatchNormMonitor goes on without smoothness for the rest of this run: {reason}")
            else:
                self.give_up(reason)

    def records_in(self, moment: Moment) -> bool:
        """Whether batch norm or smoothness is recorded in the step of this moment."""
        return super().records_in(moment) or self._smoothness_schedule.any_due(moment)

    def pause(self, steps: int) -> None:
        """Record no step of this epoch before `steps` more have passed."""
        super().pause(steps)
        self._smoothness_schedule.wait(self._moment, steps)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return super().state_dict() | {
            "numbered": dict(self._tables.numbered),
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
