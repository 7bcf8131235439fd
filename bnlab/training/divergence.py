"""`DivergenceStop`: the end of a run whose loss is no longer a number, which is a result and not a crash."""

import math
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bnlab.training.ranks import state_of_this_rank, states_of_all_ranks
from bnlab_callbacks import first_non_finite, gather_ranks

# steps between two looks at the losses; each look waits for the device once
_CPU_INTERVAL, _ACCELERATOR_INTERVAL = 10, 50


class Divergence(NamedTuple):
    """The first optimizer step, counted from 0, whose loss was NaN or infinite, that loss, and the one before."""

    step: int
    loss: float
    previous_loss: float | None


class DivergenceStop(Callback):
    """Stops training when the loss of a step is NaN or infinite, and remembers which step it was, exactly.

    Losses are collected without waiting for the device and looked at every few steps and at the end of an epoch; all
    ranks stop together. The attribute `divergence` tells what was found, None in a run that did not diverge.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.divergence: Divergence | None = None
        self._losses: list[Tensor] = []
        self._steps: list[int] = []
        self._step = 0
        self._previous: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start anew; a checkpoint's state is loaded after this."""
        if stage == "fit":
            self._forget()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the optimizer step that the batch belongs to; several may share one."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the loss; look at the remembered ones every few steps."""
        if not outputs:
            return
        self._losses.append(outputs["loss"].detach())
        self._steps.append(self._step)
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if (batch_idx + 1) % (_CPU_INTERVAL if on_cpu else _ACCELERATOR_INTERVAL) == 0:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the rest, also where `max_steps` ends an epoch early."""
        self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what was found, and the losses that are yet to be looked at; numbers and tensors only."""
        state = {
            "divergence": None if self.divergence is None else list(self.divergence),
            "losses": torch.stack(self._losses).cpu() if self._losses else torch.zeros(0),
            "steps": list(self._steps),
            "previous": self._previous,
        }
        checkpoint["callbacks"][self.state_key] = {"ranks": states_of_all_ranks(trainer, state)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        state = state_of_this_rank(trainer, checkpoint["callbacks"].get(self.state_key, {"ranks": []})["ranks"])
        if state is None:
            return
        self.divergence = None if state["divergence"] is None else Divergence(*state["divergence"])
        self._losses = list(state["losses"])
        self._steps = list(state["steps"])
        self._previous = state["previous"]

    def _look(self, trainer: Trainer) -> None:
        device = trainer.strategy.root_device  # those of a checkpoint lie on the CPU
        losses = torch.stack([loss.to(device) for loss in self._losses]).tolist() if self._losses else []
        # Lightning divides the loss that hooks see by the number of accumulated batches
        losses = [loss * trainer.accumulate_grad_batches for loss in losses]
        found = first_divergence(self._steps, losses, self._previous)
        self._previous = losses[-1] if losses else self._previous
        self._losses.clear()
        self._steps.clear()
        if trainer.world_size > 1:
            found = _earliest(trainer, found)
        if found is not None and self.divergence is None:
            self.divergence = found
            trainer.should_stop = True


def first_divergence(steps: list[int], losses: list[float], previous: float | None) -> Divergence | None:
    """The first of `losses`, which belong to `steps`, that is not finite; `previous` is the loss before them."""
    place = first_non_finite(losses)
    if place is None:
        return None
    return Divergence(steps[place], losses[place], losses[place - 1] if place else previous)


def _earliest(trainer: Trainer, found: Divergence | None) -> Divergence | None:
    """The earliest divergence on any rank; all ranks call this at the same step."""
    previous = math.nan if found is None or found.previous_loss is None else found.previous_loss
    mine = [math.inf, 0.0, previous] if found is None else [found.step, found.loss, previous]
    device = trainer.strategy.root_device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has nothing wider
    ranks = gather_ranks(trainer, torch.tensor(mine, dtype=dtype, device=device)).tolist()
    step, loss, previous = min(ranks, key=lambda rank: rank[0])
    return None if math.isinf(step) else Divergence(int(step), loss, None if math.isnan(previous) else previous)
