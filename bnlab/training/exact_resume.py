"""`ExactResume`: checkpoints that a run goes on from as if it had never stopped."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bnlab.training.checkpoint_file import RUN_STATE
from bnlab.training.loop_state import between_epochs, within_epoch
from bnlab.training.random_state import random_state, restore_random_state
from bnlab.training.run_checkpoint import RunCheckpoint
from bnlab.training.run_files import settle
from bnlab.training.stop_signals import StopSignals


class ExactResume(Callback):
    """Adds to `RunCheckpoint`'s checkpoints what Lightning leaves out, and puts it back when a run goes on.

    That is: the random generators, how much of the event files and the table of records the checkpoint knows, the
    metrics that schedule and early stopping look at, whether training was to stop, and the position in the epoch.
    SIGTERM and Ctrl-C end training between two batches, with a checkpoint.

    It must be the first of the Trainer's callbacks: then it acts between batches, before any other has begun the next.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checkpoints: list[RunCheckpoint] = []
        self._signals = StopSignals()
        self._loaded: dict[str, Any] | None = None
        self._between_epochs = False

    # saving

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two batches: restore, save, or stop."""
        if self._loaded is not None:
            self._restore(trainer, self._loaded)
            self._loaded = None
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients that are being accumulated are in no checkpoint
        self._between_epochs = batch_idx == 0
        for checkpoint in self._checkpoints:
            checkpoint.write_due(trainer)
        if self._signals.received is not None:
            self._stop(trainer, self._signals.received)

    def _stop(self, trainer: Trainer, received: signal.Signals) -> None:
        for checkpoint in self._checkpoints[:1]:
            checkpoint.save_now(trainer)
        raise KeyboardInterrupt if received == signal.SIGINT else SIGTERMException

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The checkpoints come last, and save after this."""
        self._between_epochs = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Complete a checkpoint that is made between two batches; others stay as Lightning makes them."""
        if not any(each.writing for each in self._checkpoints):
            return
        loops = checkpoint["loops"]["fit_loop"]
        if self._between_epochs:
            between_epochs(loops)
            checkpoint["epoch"] -= 1  # Lightning's is the epoch that just ended
        batches = 0 if self._between_epochs else within_epoch(loops)
        checkpoint[RUN_STATE] = {
            "epochs": loops["epoch_progress"]["current"]["completed"],
            "batches": batches,
            "random": _of_all_ranks(trainer, random_state()),
            "files": settle(trainer, self.folder) if trainer.is_global_zero else {},
            "metrics": {name: value.detach().cpu().clone() for name, value in trainer.callback_metrics.items()},
            "should_stop": trainer.should_stop,
        }

    # going on

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what is to be restored later."""
        self._loaded = checkpoint.get(RUN_STATE)
        if self._loaded is not None:
            trainer.should_stop = self._loaded["should_stop"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the checkpoints."""
        self._checkpoints = [each for each in trainer.checkpoint_callbacks if isinstance(each, RunCheckpoint)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the metrics, after the sanity check; watch for signals."""
        if self._loaded is not None:
            trainer.callback_metrics.update(self._loaded["metrics"])
            if not self._loaded["batches"]:
                # with max_steps, Lightning takes an epoch that has ended for one that was broken off
                _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]
        if trainer.world_size == 1:  # Lightning brings SIGTERM to all ranks itself
            self._signals.watch()

    def _restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        # else Lightning would leave out the schedule's step at the end of an epoch that it resumes
        trainer.fit_loop._restarting = False
        if trainer.world_size == len(state["random"]):
            restore_random_state(state["random"][trainer.global_rank])

    # the end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the signals alone."""
        self._signals.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the signals alone."""
        self._signals.release()


def _of_all_ranks(trainer: Trainer, state: dict[str, Any]) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [state]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states
