"""Each rank's own state, in a checkpoint that only one of them writes."""

from typing import Any

import torch
from lightning.pytorch import Trainer


def states_of_all_ranks(trainer: Trainer, state: Any) -> list[Any]:
    """Every rank's `state`, in their order; all ranks must call it."""
    if trainer.world_size == 1:
        return [state]
    states: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(states, state)
    return states


def state_of_this_rank(trainer: Trainer, states: list[Any]) -> Any | None:
    """The part of this rank in what `states_of_all_ranks` gave; None where there were more ranks or fewer then."""
    return states[trainer.global_rank] if len(states) == trainer.world_size else None
