"""`EpochTimer`: wall time of every epoch, training and validation apart."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch

from bnlab_callbacks.core.batches import batch_length
from bnlab_callbacks.core.device import widest
from bnlab_callbacks.core.lightning.names import Callback, LightningModule, Trainer
from bnlab_callbacks.core.lightning.publisher import publish_epoch
from bnlab_callbacks.core.lightning.trainer import gather_ranks


class EpochTimer(Callback):
    """Records how long each epoch takes, without the validation that Lightning runs within it.

    The device is synchronised at the edges of epochs and validations only. Under DDP the times are the slowest rank's
    and the samples those of all ranks.

    Logs at the end of each training epoch:

    - `time/epoch_s`: seconds from the start of the epoch to its end
    - `time/val_s`: seconds of its validation
    - `time/train_s`: the rest, `time/epoch_s` − `time/val_s`
    - `time/samples_per_s`: training samples per second of `time/train_s`
    - `time/partial_epoch`: 1, only for an epoch that began in the middle, when a run was resumed from a checkpoint
      within it that had no EpochTimer: its times cover only what was run. With one they go on from the checkpoint's.

    The values are in `trainer.callback_metrics` too, and in the attribute `latest`.

    Args:
        enabled: False switches the callback off.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.latest: dict[str, float] = {}
        self._loaded: dict[str, Any] | None = None
        self._begin(partial=True)

    def _begin(self, partial: bool) -> None:
        self._start = perf_counter()
        self._validation_start = self._start
        self._validation = 0.0
        self._samples = 0
        self._partial = partial

    def _synchronize(self, trainer: Trainer) -> None:
        """Wait for the device: what it has queued belongs to the time before."""
        device = trainer.strategy.root_device
        if self.enabled and device.type != "cpu":
            torch.accelerator.synchronize(device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: a run that is resumed within an epoch sees no start of that epoch."""
        self._synchronize(trainer)
        self._begin(partial=self._loaded is None)
        if self._loaded is not None:
            self._start -= self._loaded["seconds"]
            self._validation, self._samples = self._loaded["validation"], self._loaded["samples"]
            self._loaded = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock at the edge of an epoch."""
        self._synchronize(trainer)
        self._begin(partial=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples."""
        self._samples += batch_length(batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting training time."""
        self._synchronize(trainer)
        self._validation_start = perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on counting training time. The sanity check comes before the first epoch and is forgotten there."""
        self._synchronize(trainer)
        self._validation += perf_counter() - self._validation_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the epoch's times. All ranks take part: the exchange is a collective."""
        if not self.enabled:
            return
        self._synchronize(trainer)
        device = trainer.strategy.root_device
        epoch = perf_counter() - self._start
        mine = torch.tensor(
            [epoch, self._validation, epoch - self._validation, self._samples], dtype=widest(device), device=device
        )
        ranks = gather_ranks(trainer, mine).tolist()
        self.latest = epoch_times(ranks)
        if self._partial:
            self.latest["time/partial_epoch"] = 1.0
        publish_epoch(trainer, self.latest)

    def state_dict(self) -> dict[str, Any]:
        """What the present epoch took until now; numbers only."""
        return {"seconds": perf_counter() - self._start, "validation": self._validation, "samples": self._samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._loaded = state_dict


def epoch_times(ranks: Sequence[Sequence[float]]) -> dict[str, float]:
    """The published values from every rank's (epoch, validation, training seconds, samples)."""
    epoch, validation, training, samples = zip(*ranks, strict=True)
    return {
        "time/train_s": max(training),
        "time/val_s": max(validation),
        "time/epoch_s": max(epoch),
        "time/samples_per_s": sum(samples) / max(training) if max(training) > 0 else 0.0,
    }
