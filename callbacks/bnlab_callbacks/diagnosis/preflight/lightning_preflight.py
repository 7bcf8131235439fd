"""The preflight of a LightningModule."""

import logging
from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer

from bnlab_callbacks.core.lightning.names import LightningModule, Trainer
from bnlab_callbacks.core.lightning.repeatable_step import LightningStep, why_not
from bnlab_callbacks.diagnosis.findings import Advise
from bnlab_callbacks.diagnosis.preflight.look import Preflight, look


def preflight(
    module: LightningModule,
    batch: Any,
    *,
    trainer: Trainer | None = None,
    curvature_steps: int = 10,
    advise: Advise | None = None,
) -> Preflight:
    """Look at a net before it is trained, on one training batch.

    Everything runs on copies: weights, gradients, buffers (running statistics) and random generators of the module are
    left bit for bit as they were.

    Args:
        module: any module with a `training_step`, in the state in which training would begin.
        batch: as `training_step` gets it, on the module's device.
        trainer: the Trainer that will train it, for its precision; None for a plain one.
        curvature_steps: Hessian-vector products, each about three training steps; 0 leaves the curvature out.
        advise: a function of an advice's stable key and its text, which gives the text to show, or None for the text as
            it is.
    """
    trainer = trainer or _plain_trainer()
    step = why_not(trainer, module) or LightningStep(trainer, 0)
    return look(module, batch, step, lambda twin: _optimizers(twin.configure_optimizers()), curvature_steps, advise)


def _optimizers(configured: Any) -> Iterator[Optimizer]:
    """All optimizers in what `configure_optimizers` returned, whatever its form."""
    if isinstance(configured, Optimizer):
        yield configured
    elif isinstance(configured, dict):
        yield from _optimizers(configured.get("optimizer"))
    elif isinstance(configured, list | tuple):
        for one in configured:
            yield from _optimizers(one)


def _plain_trainer() -> Trainer:
    log = logging.getLogger(f"{Trainer.__module__.partition('.trainer')[0]}.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        return Trainer(
            accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
    finally:
        log.setLevel(level)
