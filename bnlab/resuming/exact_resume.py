"""`ExactResume`: checkpoints from which a run resumes as if it had never stopped.

Lightning's checkpoints are made in the middle of its loops, and it guesses from the counters where that was. The
functions here put the counters of a moment between two batches into the one form for it that Lightning guesses right.
"""

import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bnlab.errors import InputError
from bnlab.resuming.checkpoint_file import RUN_STATE
from bnlab.resuming.run_checkpoint import RunCheckpoint
from bnlab.resuming.run_files import flush_to_disk
from bnlab.resuming.stopping import StopSignals, requeue
from bnlab.training.ranks import state_of_this_rank, states_of_all_ranks
from bnlab_callbacks import RandomState, gather_ranks

# batches between two moments at which several ranks ask each other whether to stop
_AGREE_EVERY = 10


class ExactResume(Callback):
    """Adds to `RunCheckpoint`'s checkpoints what Lightning leaves out, and puts it back when a run resumes.

    That is: the random generators, how much of the event files and the table of records the checkpoint knows, the
    metrics that schedule and early stopping look at, whether training was to stop, and the position in the epoch.
    SIGTERM and Ctrl-C end training between two batches, with a checkpoint; so does the signal for a requeue.

    It must be the first of the Trainer's callbacks: then it acts between batches, before any other has begun the next.

    Args:
        folder: the run's folder.
        same_run: whether a checkpoint that is loaded is this run's own; else training that was to stop continues.
        requeue_signal: after which SLURM is asked to run the job again.
    """

    def __init__(self, folder: Path, same_run: bool = True, requeue_signal: signal.Signals | None = None) -> None:
        self.folder = folder
        self.same_run = same_run
        self.requeue_signal = requeue_signal
        self._checkpoints: list[RunCheckpoint] = []
        self._signals = StopSignals(requeue_signal)
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
        received = self._received(trainer, batch_idx)
        if received is not None:
            for checkpoint in self._checkpoints[:1]:
                checkpoint.save_now(trainer)
            if received == self.requeue_signal and trainer.is_global_zero:
                sys.stderr.write(f"bnlab: {requeue()}\n")
            raise KeyboardInterrupt if received == signal.SIGINT else SIGTERMException

    def _received(self, trainer: Trainer, batch_idx: int) -> int | None:
        """The signal to stop at; ranks agree on it every few batches."""
        mine = self._signals.received
        if trainer.world_size == 1:
            return mine
        if batch_idx % _AGREE_EVERY:
            return None
        numbers = torch.tensor([mine or 0], device=trainer.strategy.root_device)
        return int(gather_ranks(trainer, numbers).max()) or None

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
        metrics = trainer.callback_metrics.items()
        checkpoint[RUN_STATE] = {
            "epochs": loops["epoch_progress"]["current"]["completed"],
            "batches": batches,
            "steps": trainer.global_step,
            "random": states_of_all_ranks(trainer, RandomState().state_dict()),
            "files": flush_to_disk(trainer, self.folder) if trainer.is_global_zero else {},
            "metrics": {name: torch.as_tensor(value).detach().cpu().clone() for name, value in metrics},
            "should_stop": trainer.should_stop,
        }

    # resuming

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what is to be restored later."""
        self._loaded = checkpoint.get(RUN_STATE)
        if self._loaded is not None and self.same_run:
            trainer.should_stop = self._loaded["should_stop"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the checkpoints.

        Raises:
            InputError: ranks resume from different checkpoints.
        """
        step = -1 if self._loaded is None else self._loaded["steps"]
        steps = gather_ranks(trainer, torch.tensor([step], device=trainer.strategy.root_device)).flatten().tolist()
        if len(set(steps)) > 1:
            raise InputError(f"the ranks found different checkpoints, of steps {steps}: name one with --run_folder.")
        self._checkpoints = [each for each in trainer.checkpoint_callbacks if isinstance(each, RunCheckpoint)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the metrics, after the sanity check; watch for signals."""
        if self._loaded is not None:
            trainer.callback_metrics.update(self._loaded["metrics"])
            if not self._loaded["batches"]:
                # with max_steps, Lightning takes an epoch that has ended for one that was broken off
                _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]
        self._signals.watch()

    def _restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        # else Lightning would leave out the schedule's step at the end of an epoch that it resumes
        trainer.fit_loop._restarting = False
        random = state_of_this_rank(trainer, state["random"])
        if random is not None:
            RandomState.from_state_dict(random).restore()

    # the end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the signals alone. Where the checkpoint was the run's last, its metrics are the result."""
        self._signals.release()
        if self._loaded is not None:
            trainer.callback_metrics.update(self._loaded["metrics"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the signals alone."""
        self._signals.release()


Counters = dict[str, Any]


def between_epochs(fit_loop: Counters) -> None:
    """Rewrite the counters, in place: all epochs that were begun are complete, and the next one has not begun."""
    for progress in (fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]):
        _set_all(progress["total"], progress["total"]["completed"])
    _set_all(fit_loop["epoch_progress"]["current"], fit_loop["epoch_progress"]["current"]["completed"])
    _set_all(fit_loop["epoch_loop.batch_progress"]["current"], 0)
    fit_loop["epoch_loop.batch_progress"]["is_last_batch"] = False
    fit_loop["state_dict"]["combined_loader"] = [{"batches": 0}]


def within_epoch(fit_loop: Counters) -> int:
    """Rewrite the counters, in place: the epoch's batches so far are complete, their validations too.

    Returns:
        the number of these batches.
    """
    progress = fit_loop["epoch_loop.batch_progress"]
    done: int = progress["current"]["completed"]
    for counts in (progress["total"], progress["current"]):
        completed = counts["completed"]
        _set_all(counts, completed)
        counts["completed"] = completed - 1  # Lightning takes this for a save at the end of the batch, and adds it
    progress["is_last_batch"] = False
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # which it adds as well
    fit_loop["state_dict"]["combined_loader"] = [{"batches": done}]
    return done


def _set_all(counts: dict[str, int], number: int) -> None:
    for name in counts:
        counts[name] = number
