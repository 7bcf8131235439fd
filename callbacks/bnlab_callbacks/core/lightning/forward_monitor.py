"""The common part of the monitors whose recorder hooks modules."""

from torch import Tensor

from bnlab_callbacks.core.lightning.monitor import Monitor
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer
from bnlab_callbacks.core.lightning.raw_steps import optimizer_steps


class ForwardMonitor(Monitor):
    """A monitor that tells a recorder of forward passes what Lightning's training loop does."""

    def begin_batch(self, trainer: Trainer) -> None:
        """Put the hooks on for a step that is due, and leave them on over its accumulated batches."""
        if self.leads:
            self._recorder.begin_batch(self._moment, optimizer_steps(trainer))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stop the hooks: forward passes within the backward pass are checkpointing's repetitions."""
        if self.leads and self._recorder.listens:
            self._recorder.before_backward()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let them record again: with manual optimization, more forward passes may follow in this step."""
        if self.leads and self._recorder.listens:
            self._recorder.after_backward()

    def end_batch(self, trainer: Trainer) -> None:
        """Take this batch's calls; when they end in an optimizer step, the step is recorded."""
        if self.leads:
            self._recorder.end_batch(self._moment, optimizer_steps(trainer))

    def end_raised_batch(self, trainer: Trainer) -> None:
        """Take the calls of a batch that makes no step, as if it did."""
        if self.leads:
            self._recorder.end_batch(self._moment, optimizer_steps(trainer) + 1)

    def drop_window(self) -> None:
        """Forget the calls of batches that were accumulated for a step that is never made."""
        if self._recorder is not None:
            self._recorder.drop_window()
