"""`RunRecord`: the run's configuration, machine and outcome, in `run.yaml` and on the screen."""

import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bnlab.files.durable_files import write_durably
from bnlab.training.divergence import DivergenceStop
from bnlab.training.provenance import git_state, hardware, versions


class RunRecord(Callback):
    """Keeps `run.yaml` in the run's folder, from the start (`running`) to the end, also of a run that is broken off.

    Outcomes: `finished` (all epochs), `early` (early stopping), `diverged` (a loss that is no number), `interrupted`
    (Ctrl-C, SIGTERM), `failed` (an exception). At the end it prints one short screen.

    A resumed run keeps what its first start wrote, and has a list `resumed` beside it: when and from which checkpoint
    it resumed, how it had been left, and what was different from the first start (`argv`, `versions`, …).

    Args:
        folder: the run's folder, which exists.
        identity: what the run is: experiment, dataset, batch_norm, seed and so on, as primitives.
        earlier: for a resumed run, what its run.yaml holds.
        checkpoint: for such a run, what it resumes from: `file`, `epoch` and `step`; None where it begins again.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        earlier: dict[str, Any] | None = None,
        checkpoint: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {"outcome": {"status": "running"}, **identity, "argv": list(sys.argv)}
        self._earlier = earlier
        self._checkpoint = checkpoint
        self._epoch_seconds: list[float] = []
        self._epoch_start = perf_counter()
        self._seconds_so_far = 0.0  # of the epoch that a checkpoint lies in
        self._done = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known at the start."""
        data = getattr(trainer, "datamodule", None)
        self.content |= {
            "samples": getattr(data, "sample_counts", None),
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "hardware": hardware(trainer.strategy.root_device, trainer.world_size),
            "precision": str(trainer.precision),
            "versions": versions(),
            "git": git_state(),
            "started": _now(),
            "ended": None,
        }
        if self._earlier:
            self.content = continued(self._earlier, self.content, self._checkpoint)
        self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The seconds of each epoch, and of the one that is not over; numbers only."""
        return {"epoch_seconds": list(self._epoch_seconds), "seconds_so_far": perf_counter() - self._epoch_start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._epoch_seconds = list(state_dict["epoch_seconds"])
        self._seconds_so_far = state_dict["seconds_so_far"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of a run that resumes within an epoch: the epoch's beginning counts too."""
        self._epoch_start = perf_counter() - self._seconds_so_far

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._epoch_start = perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._epoch_seconds.append(perf_counter() - self._epoch_start)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record how training ended, tell TensorBoard's HPARAMS page, and print the screen."""
        outcome = outcome_of(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                metrics = {f"hp/{name}": self._metric(trainer, name) for name in ("val_acc", "val_loss")}
                known = {name: value for name, value in metrics.items() if value is not None}
                logger.log_hyperparams(dict(logger.hparams), known, step=trainer.global_step)
        self._finish(trainer, outcome)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record that the run was broken off."""
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            outcome = {"status": "interrupted"}
        else:
            outcome = {"status": "failed", "error": f"{type(exception).__name__}: {exception}"}
        self._finish(trainer, {**outcome, "epochs": len(self._epoch_seconds), "steps": trainer.global_step})

    def _finish(self, trainer: Trainer, outcome: dict[str, Any]) -> None:
        if self._done or not trainer.is_global_zero:
            return
        self._done = True
        seconds = self._epoch_seconds
        self.content |= {
            "outcome": outcome,
            "val_acc": self._metric(trainer, "val_acc"),
            "train_loss": self._metric(trainer, "train_loss"),
            "seconds_per_epoch": sum(seconds) / len(seconds) if seconds else None,
            "ended": _now(),
        }
        try:
            self._write(trainer)
        except OSError as error:  # after the exception that says so too, which it must not hide
            sys.stderr.write(f"bnlab: how the run ended could not be written ({error}).\n")
        sys.stdout.write(self.screen(_checkpoint(trainer)))
        sys.stdout.flush()

    @staticmethod
    def _metric(trainer: Trainer, name: str) -> float | None:
        value = trainer.callback_metrics.get(name)
        return None if value is None else float(value)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            write_yaml(self.folder / "run.yaml", self.content)

    def screen(self, checkpoint: str | None) -> str:
        """The end of the run in a few lines: outcome, accuracy, time, and what to do next."""
        accuracy, seconds = self.content["val_acc"], self.content["seconds_per_epoch"]
        logs = self.folder.parents[2] if self.folder.name.startswith("version_") else self.folder
        lines = [
            f"{self.content['experiment']} on {self.content['dataset']}: {describe(self.content['outcome'])}",
            f"  validation accuracy  {'none yet' if accuracy is None else f'{100 * accuracy:.2f} %'}",
            f"  seconds per epoch    {'none yet' if seconds is None else f'{seconds:.2f}'}",
            f"  events               {self.folder}",
            f"  look at them         tensorboard --logdir {logs}",
        ]
        if self.content["outcome"]["status"] in ("interrupted", "failed"):
            lines.append(f"  go on                bnlab fit --resume --run_folder {self.folder}")
        if checkpoint:
            lines.append(f"  test accuracy        bnlab test --ckpt_path {checkpoint}")
        return "\n" + "\n".join(lines) + "\n"


def continued(earlier: dict[str, Any], now: dict[str, Any], checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """The record of a resumed run, from its earlier record and what a first start would write now."""
    started = {name: earlier.get(name, value) for name, value in now.items() if name != "outcome"}
    differences = {name: now[name] for name in ("argv", "hardware", "versions", "git") if now[name] != started[name]}
    resumption = {"time": now["started"], "checkpoint": checkpoint, "left": earlier.get("outcome"), **differences}
    resumed = [*earlier.get("resumed", []), resumption]
    return {"outcome": now["outcome"], **started, "resumed": resumed, "ended": None}


def outcome_of(trainer: Trainer) -> dict[str, Any]:
    """How a training that came to its end ended, from the callbacks that can end one."""
    # not `current_epoch`: where the checkpoint was the run's last, no epoch is trained that would raise it
    epochs: int = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    steps = trainer.global_step
    for callback in trainer.callbacks:  # type: ignore[attr-defined] # set by a connector
        if isinstance(callback, DivergenceStop) and callback.divergence is not None:
            found = callback.divergence
            evidence = {"loss": found.loss, "previous_loss": found.previous_loss}
            return {"status": "diverged", "step": found.step, "evidence": evidence, "epochs": epochs, "steps": steps}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        # a resumed run has the `stopped_epoch` of its checkpoint
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch and trainer.should_stop:
            reason = f"{callback.patience} epochs without improvement of {callback.monitor}"
            return {"status": "early", "epochs": epochs, "steps": steps, "reason": reason}
    return {"status": "finished", "epochs": epochs, "steps": steps}


def describe(outcome: dict[str, Any]) -> str:
    """An outcome in words."""
    status = outcome["status"]
    if status == "diverged":
        return f"diverged at step {outcome['step']} (loss {outcome['evidence']['loss']})"
    if status == "early":
        return f"stopped early at epoch {outcome['epochs']}: {outcome['reason']}"
    if status == "failed":
        return f"failed in epoch {outcome['epochs'] + 1}: {outcome['error']}"
    if status == "interrupted":
        return f"interrupted in epoch {outcome['epochs'] + 1}"
    if status == "running":
        return "not ended yet, or killed"
    return f"finished after {outcome['epochs']} epochs"


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    write_durably(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _checkpoint(trainer: Trainer) -> str | None:
    callback = trainer.checkpoint_callback
    path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
    return path if path and os.path.exists(path) else None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
