"""`GradientMonitor`: per-layer statistics of the gradient that each optimizer step uses."""

from functools import partial
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.lightning.monitor import Monitor
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer
from bnlab_callbacks.core.lightning.raw_steps import RawSteps
from bnlab_callbacks.core.lightning.trainer import optimizer_name, remaining_loss_scale
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.core.weights import find_weights, lazy_layers
from bnlab_callbacks.recorders.gradient_steps import GradientStep
from bnlab_callbacks.recorders.gradient_tables import GradientTables
from bnlab_callbacks.recorders.gradients import GradientRecorder


class GradientMonitor(Monitor):
    """Records, layer by layer, the gradient of an optimizer step and the update that came of it.

    The gradient is the effective one: averaged over accumulated batches and over ranks, free of the loss scale, before
    clipping. A layer is a parameter with two or more dimensions (weights of linear, convolution, embedding, recurrent
    and attention layers; neither biases nor the scales of norms: a bias before batch norm has a gradient of rounding
    noise that looks like a vanishing one), or one of weights that lie flat in one dimension (e3nn, escnn). Pruned and
    weight-normed layers (`torch.nn.utils.prune`, `weight_norm`) are recorded by the effective weight that they compute
    with; other parametrizations (spectral norm, orthogonal) by what they hold of it, under the layer's name. Layers
    whose gradient is None are not logged; those that are set free, get their shape or are added later are from then on.
    All values are computed in float32 or wider.

    Logs, for each layer, `NN` being its place in the order of execution (of layers that are frozen at first, behind the
    others; of layers that are added, the next number; in a resumed run, as before):

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

    Steps are those of the optimizers, also where Lightning does not know of them (`use_pl_optimizer=False`, SAM's
    `second_step`): then the gradient is that of the last `manual_backward`, before anything clips it; after a plain
    `backward()`, or where a closure has one, that which the step finds or leaves. Where a step evaluates the loss
    itself (L-BFGS, SAM), the gradient is that of its first evaluation, and the update that of the whole step. A step
    that a loss scaler leaves out moves nothing; a batch without a loss is no step, and the next one is recorded.

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
        parameters: `all` to record biases, scales of norms and all other vectors and numbers that are trained, too,
            each as `<module>.<parameter>`. They get the numbers behind the layers', and are not in `grad_depth_slope`.

    Raises:
        ValueError: `every_n_steps` below 1, `budget` not above 0, `layers` no regular expression, or another
            `parameters`.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        layers: str | None = None,
        update_ratio: bool = True,
        enabled: bool = True,
        budget: float | None = None,
        parameters: Literal["weights", "all"] = "weights",
    ) -> None:
        if parameters not in ("weights", "all"):
            raise ValueError(f"parameters={parameters!r} is neither 'weights' nor 'all'.")
        super().__init__(every_n_steps, layers, enabled, budget)
        self.update_ratio = update_ratio
        self.parameters = parameters
        self.vectors = parameters == "all"
        self.changed_before = 0
        self._tables = self._new_tables()

    def _new_tables(self) -> GradientTables:
        return GradientTables(self.wants, self.update_ratio, vectors=self.vectors)

    @property
    def numbered(self) -> dict[str, str]:
        """Layers → `<NN>_<layer>`, as far as they are known."""
        return self._tables.numbered

    def watch(self, trainer: Trainer, model: nn.Module) -> None:
        """Join the recorder of gradients."""
        self._tables = self._new_tables()
        self._tables.load_state_dict(self._loaded)
        self.join(GradientRecorder, model)
        there = [weight.layer for weight in find_weights(model, frozen=True, vectors=self.vectors)]
        if not any(map(self.wants, [*there, *lazy_layers(model)])):
            self.give_up(f"no layer's name matches layers={self.layers!r}; there are: {', '.join(there)}.")

    def close(self) -> None:
        """Take the hooks off, free buffers."""
        super().close()
        self._tables = self._new_tables()

    def begin_batch(self, trainer: Trainer) -> None:
        """Watch the order of execution until it is known."""
        if self.leads:
            self._recorder.begin_batch()

    @keeps_training
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradient sums of this optimizer's layers: whole window, all ranks, unscaled, before clipping."""
        raw = self.told_of(optimizer)
        if self.leads:
            scale = partial(remaining_loss_scale, trainer, optimizer)
            stream = optimizer_name(trainer, optimizer)
            self._recorder.before_optimizer_step(optimizer, stream, self._moment, scale, raw)

    @property
    def step_recorder(self) -> GradientRecorder:
        """The recorder."""
        recorder: GradientRecorder = self._recorder
        return recorder

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """With manual optimization the step may be one that Lightning does not know of: see its gradient now."""
        if self._raw_steps is not None:
            self._after_backward(self._raw_steps)

    @keeps_training
    def _after_backward(self, raw_steps: RawSteps) -> None:
        if self.leads:
            raw_steps.after_backward()

    def end_batch(self, trainer: Trainer) -> None:
        """Measure what the steps of this batch did to the weights."""
        if self.leads:
            self._recorder.end_batch(self._moment)

    def take(self, moment: Moment, left: GradientStep, seconds: float) -> None:
        """Keep what a step left."""
        self.keep(left, self._tables.read, seconds)

    def epoch_values(self) -> dict[str, float]:
        """The number of steps whose gradient was not finite."""
        return self._tables.pop_epoch()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return super().state_dict() | self._tables.state_dict()
