"""`GradientHistograms`: the distribution of each weight's gradient, once in a while, for TensorBoard."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.hooks import ForwardOrder
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer
from bnlab_callbacks.core.lightning.run_output import RunOutput
from bnlab_callbacks.core.lightning.tensorboard import tensorboard_writers
from bnlab_callbacks.core.lightning.trainer import logged_step, remaining_loss_scale, sharding_strategy
from bnlab_callbacks.core.naming import continue_numbers, layer_filter, number
from bnlab_callbacks.core.weights import Weight, find_weights, holders
from bnlab_callbacks.statistics.gradients import stored_values


class GradientHistograms(RunOutput):
    """Gives TensorBoard a histogram of each layer's gradient at the first optimizer step of every n-th epoch.

    The gradient and the layers are those of `GradientMonitor`: the effective gradient of the step, before clipping.
    Much slower than its statistics, so not for every step.

    Writes for every TensorBoard logger, on rank 0, `grad/<NN>_<layer>`, `NN` being the place in the order of execution.
    A gradient that is not finite has no histogram (`GradientMonitor` counts such elements).

    Args:
        every_n_epochs: epochs between two histograms.
        layers: regular expression searched in layer names; None for all layers.
        enabled: False switches the callback off.

    Raises:
        ValueError: `every_n_epochs` below 1, or `layers` no regular expression.
    """

    def __init__(self, every_n_epochs: int = 1, layers: str | None = None, enabled: bool = True) -> None:
        super().__init__(enabled)
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs} is below 1: give the epochs between two histograms.")
        self.every_n_epochs = every_n_epochs
        self.layers = layers
        self._filter = layer_filter(layers)
        self._weights: list[Weight] = []
        self._numbered: dict[str, str] = {}
        self._order: ForwardOrder | None = None
        self._due: set[int] = set()  # parameters, by their identity
        self._free: set[int] = set()  # those that are trained from the start

    def begin(self, trainer: Trainer) -> None:
        """Look for TensorBoard."""
        sharding = sharding_strategy(trainer)
        if sharding:
            self.give_up(f"{sharding} keeps only a part of each layer on a rank.")
        elif not list(tensorboard_writers(trainer)):
            self.give_up("no TensorBoard logger.")

    @keeps_training
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the weights and start to watch the order in which their modules run."""
        self._weights, self._numbered, self._due = find_weights(pl_module, frozen=True), {}, set()
        self._free = {id(weight.parameter) for weight in self._weights if weight.trained}
        self._order = ForwardOrder(holders(pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch the order of execution until it is known; every n-th epoch is due from its first batch on."""
        if self.active and self._order is not None:
            self._order.gate.open = True
        if self.active and batch_idx == 0 and trainer.current_epoch % self.every_n_epochs == 0:
            self._due = {id(weight.parameter) for weight in self._weights if weight.trained}

    @keeps_training
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Write the histograms of this optimizer's layers, if they are due."""
        if self._order is not None:
            self._number(pl_module, self._order)
        if not self._due:
            return
        due = self._due & {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._due -= due
        for weight in self._weights:
            if id(weight.parameter) in due and self._filter.search(weight.layer):
                self._write(trainer, weight, remaining_loss_scale(trainer, optimizer))

    def _number(self, model: nn.Module, order: ForwardOrder) -> None:
        """Number the layers by execution, first those that are trained; lazy ones have their shapes by now."""
        known = {id(weight.parameter) for weight in self._weights}
        new = [weight for weight in find_weights(model, frozen=True) if id(weight.parameter) not in known]
        lazy = {id(weight.parameter) for weight in new if weight.trained}
        self._weights, self._free = self._weights + new, self._free | lazy
        if self._due:
            self._due |= lazy
        trained = {weight.layer for weight in self._weights if id(weight.parameter) in self._free}
        in_order = order.sort([(weight.layer, weight.module) for weight in self._weights])
        numbered = number(layer for layer in in_order if layer in trained)
        self._numbered = continue_numbers(numbered, in_order)
        order.remove()
        self._order = None

    def _write(self, trainer: Trainer, weight: Weight, scale: float) -> None:
        if not weight.has_gradient:
            return
        values = stored_values(weight.gradient).float() / scale
        if values.numel() and bool(values.isfinite().all()):
            for writer, prefix in tensorboard_writers(trainer):
                writer.add_histogram(f"{prefix}grad/{self._numbered[weight.layer]}", values, logged_step(trainer))

    def close(self) -> None:
        """Leave no hooks behind."""
        super().close()
        if self._order is not None:
            self._order.remove()
            self._order = None
        self._weights = []

    def finish(self, trainer: Trainer) -> None:
        """Leave no hooks behind."""
        self.close()
