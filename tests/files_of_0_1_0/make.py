"""The script that wrote the files in this folder, with bnlab 0.1.0; README.md says how.

It runs with that version only: files of a later one would test nothing.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from expected import event_steps, sums
from lightning.pytorch import Callback, LightningModule, Trainer
from project import train

from bnlab.cli.commands import BnlabCLI
from bnlab.cli.main import main
from bnlab.training.provenance import git_state

COMMAND = (
    *("bnlab", "fit", "--run_folder", "run", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--model.batch_norm", "true", "--model.dropout", "0.5", "--model.lr_patience", "1"),
    *("--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "2", "--gradients.every_n_steps", "1"),
    *("--activations.every_n_steps", "3", "--activations.dead_window", "3", "--batch_norm.every_n_steps", "2"),
    *("--batch_norm.smoothness_every_n_steps", "4", "--heatmaps.quantities", '["grad_rms"]'),
)
STOPPED_IN = 12  # steps that are done when SIGTERM comes, in the middle of the second of three epochs of 9 steps
STOPPED_AFTER = 11  # steps of the project, in the middle of the second of its three epochs of 7 steps
COMMIT = "c6d54486ad8322713369acbe583c9aba65d7f683"  # of version 0.1.0
KEPT_OF_THE_END = ("config.yaml", "run.yaml", "records.csv", "dead_units.csv", "diagnosis.json")
HERE = Path(__file__).parent


class StopSignal(Callback):
    """Sends SIGTERM in the middle of a training step, as a cluster or a person does."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step == STOPPED_IN:
            os.kill(os.getpid(), signal.SIGTERM)


class StoppedError(Exception):
    """What ends the project's run."""


class Stop(Callback):
    """Writes a checkpoint in the middle of an epoch, and ends the run there."""

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == STOPPED_AFTER:
            trainer.save_checkpoint("project/last.ckpt")
            raise StoppedError


def fit(callback: Callback | None) -> None:
    """Run COMMAND; with a callback that no flag tells of, so that config.yaml does not have it either."""
    trains = BnlabCLI.fit

    def with_callback(cli: BnlabCLI, **arguments: Any) -> None:
        if callback is not None:
            cli.trainer.callbacks.append(callback)  # type: ignore[attr-defined]
        trains(cli, **arguments)

    BnlabCLI.fit = with_callback  # type: ignore[method-assign]
    sys.argv = list(COMMAND)  # which run.yaml keeps
    try:
        main(list(COMMAND[1:]))
    except SystemExit as stopped:
        if stopped.code != 128 + signal.SIGTERM:
            raise
    finally:
        BnlabCLI.fit = trains  # type: ignore[method-assign]


def make_runs_of_bnlab() -> None:
    """`run_stopped`, with its checkpoint, and `run_undisturbed`, with the sums of its last checkpoint."""
    fit(StopSignal())
    keep(Path("run"), HERE / "run_stopped", "checkpoints/last.ckpt")
    shutil.rmtree("run")
    fit(None)
    keep_the_end(Path("run"), Path("run/checkpoints/last.ckpt"), HERE / "run_undisturbed")


def make_runs_of_project() -> None:
    """`project_stopped` and `project_undisturbed`: the same of the project with plain Lightning."""
    with suppress(StoppedError):
        train(Path("project"), more=[Stop()])
    keep(Path("project"), HERE / "project_stopped", "last.ckpt")
    shutil.rmtree("project")
    trainer = train(Path("project"))
    trainer.save_checkpoint("project/end.ckpt")
    keep_the_end(Path("project"), Path("project/end.ckpt"), HERE / "project_undisturbed")


def keep(run: Path, target: Path, checkpoint: str) -> None:
    """Keep a run's files but for pictures, its checkpoint packed."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("heatmaps", "previous.ckpt"))
    path = target / checkpoint
    path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
    path.unlink()


def keep_the_end(run: Path, checkpoint: Path, target: Path) -> None:
    """Keep what a run that ended has in its folder, the steps in its event files, and the sums of its checkpoint."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in KEPT_OF_THE_END:
        if (run / name).exists():
            shutil.copy(run / name, target)
    content = torch.load(checkpoint, weights_only=True)
    (target / "sums.json").write_text(json.dumps(sums(content), indent=1) + "\n")
    (target / "event_steps.json").write_text(json.dumps(event_steps(run)) + "\n")


if __name__ == "__main__":
    if git_state() != {"commit": COMMIT, "dirty": False}:
        raise SystemExit(f"These files are those of version 0.1.0: check out {COMMIT}, and run this script with it.")
    torch.set_num_threads(1)
    socket.gethostname = lambda: "localhost"  # the event files' names have it
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        make_runs_of_bnlab()
        make_runs_of_project()
        os.chdir(HERE)
