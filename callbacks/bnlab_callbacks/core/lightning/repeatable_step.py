"""A step of Lightning's training loop that a replica can run again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnlab_callbacks.core.lightning.names import LightningModule, Trainer, is_lightning_module
from bnlab_callbacks.core.lightning.trainer import compiler_of, loss_scale, optimizer_progress

# what Lightning wraps in a compiled LightningModule: functions bound to the original, also in a copy
_COMPILED = ("forward", "training_step", "validation_step", "test_step", "predict_step")


def why_not(trainer: Trainer, pl_module: LightningModule) -> str | None:
    """Why steps of this module cannot be repeated, or None."""
    if not pl_module.automatic_optimization:
        return "with manual optimization there is no single loss of a step."
    if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
        return "a training_step that takes dataloader_iter fetches its own batches."
    if trainer.world_size > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in pl_module.modules()):
        return "with SyncBatchNorm a rank's loss depends on the batches of all ranks."
    return None


class LightningStep:
    """The `training_step` that is about to begin.

    Args:
        trainer: the Trainer; shared by all copies.
        batch_idx: the batch's index.
    """

    def __init__(self, trainer: Trainer, batch_idx: int) -> None:
        self._trainer = trainer
        self._batch_idx = batch_idx
        self._optimizer_steps = optimizer_progress(trainer).completed

    def to_share(self, module: nn.Module) -> dict[int, Any]:
        """The Trainer as it is; no compiler."""
        shared: dict[int, Any] = {id(self._trainer): self._trainer}
        compiler = compiler_of(module)
        if compiler is not None:
            shared[id(compiler)] = None
        return shared

    def prepare(self, twin: nn.Module, original: nn.Module) -> None:
        """Let it log nothing, and call its own methods where compiled ones call the original's."""
        if compiler_of(original) is not None:
            for name in _COMPILED:
                vars(twin).pop(name, None)
        for part in twin.modules():
            if is_lightning_module(part):
                vars(part).update(log=_ignore, log_dict=_ignore)
        if is_lightning_module(twin):
            twin.trainer = self._trainer

    def loss(self, twin: nn.Module, batch: Any) -> Tensor:
        """What `training_step` returns.

        Raises:
            TypeError: that is no loss.
        """
        training_step: Any = twin.training_step
        output = training_step(batch, *((self._batch_idx,) if _takes_index(training_step) else ()))
        loss = output["loss"] if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise TypeError("training_step returned no loss")
        return loss

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """The precision and the `global_step` of the step, and loggers that take nothing."""
        loggers, progress = self._trainer.loggers, optimizer_progress(self._trainer)
        completed = progress.completed
        self._trainer.loggers = [_NoLogger() for _ in loggers]  # type: ignore[misc]
        progress.completed = self._optimizer_steps
        try:
            # copies are not worth compiling, and would use up the limit on recompilations
            with torch.compiler.set_stance("force_eager"), self._trainer.precision_plugin.train_step_context():
                yield
        finally:
            self._trainer.loggers = loggers
            progress.completed = completed

    def loss_scale(self) -> float:
        """That of the run's loss scaler."""
        return loss_scale(self._trainer)


class _NoLogger:
    """Takes anything and does nothing, whatever the depth: `logger.experiment.add_scalar(…)`."""

    def __getattr__(self, name: str) -> _NoLogger:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _NoLogger:
        return self


def _ignore(*args: Any, **kwargs: Any) -> None:
    pass


def _takes_index(training_step: Any) -> bool:
    """Whether `training_step` takes the batch's index, too, as Lightning sees it."""
    try:
        inspect.signature(training_step).bind(None, None)
    except TypeError:
        return False
    return True
