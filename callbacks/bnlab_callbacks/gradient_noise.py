"""`GradientNoise`: the gradient noise scale, one number an epoch that tells which batch size is worth its cost."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnlab_callbacks.core.batches import batch_length
from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.lightning.monitor import Monitor
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer, rank_zero_warn
from bnlab_callbacks.core.lightning.trainer import loss_scale, remaining_loss_scale
from bnlab_callbacks.recorders.gradient_noise import GradientNoiseRecorder
from bnlab_callbacks.recorders.tables import ELSEWHERE
from bnlab_callbacks.statistics.gradient_noise import Estimate, noise_scale


class GradientNoise(Monitor):
    """Estimates the gradient noise scale from the gradients of accumulated batches, or of several ranks' batches.

    McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv 1812.06162: B = tr(Σ)/|G|², Σ being the
    variance of a sample's gradient and G the true one. A batch that is much smaller than B wins nearly all of what more
    samples cost; one that is much larger wins next to nothing. It grows in the course of a training.

    Logs, at the end of each epoch,

    - `grad_noise_scale_epoch`: in samples of the batch (images, sequences): the mean of the estimates of tr(Σ) over the
      epoch's records, divided by that of |G|²; infinite where the latter is not above 0, the signal being lost in the
      noise. It is in `trainer.callback_metrics` too. A mean over few records is rough.

    Recorded steps are those whose batches, two or more with all ranks', have one length. All parameters count. In a
    recorded step hooks on the parameters see each backward pass's gradient; nothing is copied. Needs automatic
    optimization. Reentrant checkpointing gives a shared parameter's gradient in pieces, and a wrong estimate.

    Args:
        every_n_steps: optimizer steps between two records; None for the Trainer's `log_every_n_steps`.
        enabled: False switches the callback off.
        budget: largest share of the training time that this callback may take (0.01 for 1 %): it then records
            less often than `every_n_steps` says; None for no limit.

    Raises:
        ValueError: `every_n_steps` below 1, or `budget` not above 0.
    """

    def __init__(self, every_n_steps: int | None = None, enabled: bool = True, budget: float | None = None) -> None:
        super().__init__(every_n_steps, None, enabled, budget)
        self._noise = GradientNoiseRecorder()
        self._forget()

    def _forget(self) -> None:
        self._noise.forget()
        self._sums = [0.0, 0.0, 0.0]  # of signal and noise, and their number
        self._estimates: list[Estimate] = []  # since then, on the device
        self._failure: str | None = None
        self._failed = False  # on some rank
        self._said = False

    def watch(self, trainer: Trainer, model: nn.Module) -> None:
        """See whether there is anything to compare."""
        self._sums = list(self._loaded.get("sums", [0.0, 0.0, 0.0]))
        if not trainer.lightning_module.automatic_optimization:
            self.give_up("it needs automatic optimization, to know which gradients a step adds up.")

    def close(self) -> None:
        """Take the hooks off."""
        super().close()
        self._forget()

    def fail(self, reason: str) -> None:
        """Take note of an error: of several ranks none may stop alone, since they exchange their estimates."""
        if self._trainer is not None and self._trainer.world_size > 1:
            self._noise.forget()
            self._failure = self._failure or reason
        else:
            super().fail(reason)

    @keeps_training
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the hooks on for a step that is due."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self.active or self._failure:
            return
        with self.overhead.measure():
            if not self._noise.recording and self.due(self._moment):
                self._noise.begin(pl_module)
            if self._noise.recording:
                self._noise.add_batch(batch_length(batch))

    @keeps_training
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up what the hooks saw."""
        if self._noise.recording:
            with self.overhead.measure():
                self._noise.after_backward()

    @keeps_training
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Compare with the whole gradient: of all batches and ranks, unscaled, before clipping."""
        if not self._noise.recording:
            return
        self.mark(self._moment)
        with self.overhead.measure():
            scales = loss_scale(trainer), remaining_loss_scale(trainer, optimizer)
            found = self._noise.finish(pl_module, trainer.world_size, *scales)
            if found is not None:
                self._estimates.append(found)
                self.overhead.count_record()
        if self._noise.failure:
            self.fail(self._noise.failure)

    def epoch_values(self) -> dict[str, float]:
        """The epoch's noise scale."""
        assert self._publisher is not None
        ranks = self._publisher.recorders.ranks
        vector = torch.tensor([*self._read(), float(self._failure is not None)], device=ranks.device)
        signal, noise, number, failed = ranks.gather(vector).double().mean(0).tolist()
        self._sums = [0.0, 0.0, 0.0]
        self._failed = failed > 0
        if number:
            return {"grad_noise_scale_epoch": noise_scale(signal, noise)}
        if not self._said and not self._failed:
            self._said = True
            rank_zero_warn(
                "GradientNoise had nothing to compare in this epoch: it needs steps of two or more batches of one "
                "length: accumulate_grad_batches=2 or more, or several ranks."
            )
        return {}

    def heed_failures(self) -> None:
        """Stop if an estimate failed on some rank: on all of them at once."""
        if self._failed:
            self.give_up(self._failure or ELSEWHERE)

    def _read(self) -> list[float]:
        """The sums of all estimates, on the host; those that are not finite are left out: a loss scaler's overflows."""
        if self._estimates:
            values = torch.stack([torch.stack(list(one)) for one in self._estimates]).double().cpu()
            self._estimates = []
            finite: Tensor = values[values.isfinite().all(1)]
            added = [*finite.sum(0).tolist(), float(len(finite))]
            self._sums = [before + more for before, more in zip(self._sums, added, strict=True)]
        return self._sums

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return super().state_dict() | {"sums": list(self._read())}
