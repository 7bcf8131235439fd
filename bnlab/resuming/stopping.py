"""Requests to stop a run: signals, noted at once and heeded between two batches, and SLURM's requeue.

At its time limit a SLURM job saves a checkpoint and asks to be run again. Lightning does so from within a signal
handler, in the middle of whatever step is on, and puts its checkpoint into the current folder, where the next run that
starts there resumes from it. Here the run stops between two batches, with a checkpoint of its own.
"""

import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer

from bnlab.errors import InputError

_SECOND = b"\nbnlab: stopping once this batch is done; Ctrl-C again stops at once.\n"


class StopSignals:
    """Notes SIGTERM and the first SIGINT while it is watching; a second SIGINT is a KeyboardInterrupt, as always.

    In threads other than the main one, which get no signals, it does nothing.

    Args:
        also: another signal that is noted.
    """

    def __init__(self, also: signal.Signals | None = None) -> None:
        self.watched = (signal.SIGTERM, signal.SIGINT) if also is None else (signal.SIGTERM, signal.SIGINT, also)
        self.received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def watch(self) -> None:
        """Begin to note signals."""
        self.received = None
        if threading.current_thread() is threading.main_thread() and not self._handlers:
            self._handlers = {which: signal.signal(which, self._note) for which in self.watched}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.received is not None:
                raise KeyboardInterrupt
            os.write(2, _SECOND)
        self.received = signal.Signals(number)

    def release(self) -> None:
        """Put back the handlers that were there before."""
        handlers, self._handlers = self._handlers, {}
        for which, handler in handlers.items():
            if signal.getsignal(which) == self._note:  # Lightning ignores SIGINT while it shuts down
                signal.signal(which, handler)


def take_requeue(trainer: Trainer) -> signal.Signals | None:
    """The signal (SIGUSR1) at which a SLURM job is to be requeued, which Lightning then leaves alone; else None."""
    environment = _slurm(trainer)
    if environment is None or not environment.auto_requeue or environment.requeue_signal is None:
        return None
    environment.auto_requeue = False
    return signal.Signals(environment.requeue_signal)


def check_no_requeued(trainer: Trainer) -> None:
    """Refuse to begin where Lightning would resume from a checkpoint that it finds, whichever run's that is.

    Raises:
        InputError: under SLURM, Lightning's checkpoint for a requeue is in the Trainer's folder.
    """
    left = sorted(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
    if left and _slurm(trainer) is not None:
        raise InputError(
            f"{left[-1]} is a checkpoint that Lightning made for a requeue; under SLURM it would go on from there, "
            "whichever run that was. Move it away (bnlab makes none), or start from another folder."
        )


def _slurm(trainer: Trainer) -> SLURMEnvironment | None:
    environment = trainer._accelerator_connector.cluster_environment
    return environment if isinstance(environment, SLURMEnvironment) else None


def requeue() -> str:
    """Ask SLURM to run this job again; returns what came of it, in a line."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    words = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {job} could not be requeued: {error}"
    if done.returncode:
        return f"job {job} could not be requeued: {done.stderr.strip() or f'scontrol ended with {done.returncode}'}"
    return f"job {job} is requeued; it goes on from the checkpoint if its script says --resume"
