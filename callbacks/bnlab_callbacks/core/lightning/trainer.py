"""Questions to a Trainer: those that Lightning answers by no public name, and the run's ranks.

Everything that is private in Lightning is asked for here; docs/architecture.md says why.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnlab_callbacks.core.lightning.names import Callback, Trainer
from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment


def logged_step(trainer: Trainer) -> int:
    """The step at which `self.log` would write now: batches that ended in an optimizer step, whatever the optimizers.

    `trainer.global_step` counts each optimizer of a GAN apart and would put diagnostics beside the losses' axis.
    Lightning's own callbacks (LearningRateMonitor, DeviceStatsMonitor) read the same counter.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def moment_of(trainer: Trainer) -> Moment:
    """The present optimizer step and epoch."""
    return Moment(logged_step(trainer), trainer.current_epoch)


def last_step(trainer: Trainer) -> int:
    """The step of the last batch that ended in an optimizer step: where an epoch's values belong; 0 before the first.

    A LightningModule may skip whole epochs (`on_train_batch_start` gives −1), also the first ones.
    """
    return max(logged_step(trainer) - 1, 0)


def batch_is_over(trainer: Trainer) -> bool:
    """Whether `on_train_batch_end` is under way: a run that is resumed from there goes on behind the batch."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(progress.processed > progress.completed)


def accumulates(trainer: Trainer) -> bool:
    """Whether the batch that has just ended makes no optimizer step yet."""
    return trainer.fit_loop._should_accumulate()


def optimizer_progress(trainer: Trainer) -> Any:
    """The counter that `trainer.global_step` comes from; its `completed` can be set."""
    return trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total


def compiler_of(module: nn.Module) -> Any | None:
    """What `torch.compile` left on a LightningModule, whose methods then call the compiled original's; else None."""
    return getattr(module, "_compiler_ctx", None)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The Trainer's callbacks; the list itself, which may be changed."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    return callbacks


def is_trial(trainer: Trainer) -> bool:
    """Whether the run is a `fast_dev_run`, which leaves no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined] # set by a connector


def log_interval(trainer: Trainer) -> int:
    """The Trainer's `log_every_n_steps`."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined] # set by a connector


def logger_prefix(logger: Any) -> str:
    """What a logger puts before each tag."""
    prefix = getattr(logger, "_prefix", "")
    return f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}" if prefix else ""


def sharding_strategy(trainer: Trainer) -> str | None:
    """Name of what shards parameters over ranks, so that a rank holds only a part of a layer; else None."""
    name = type(trainer.strategy).__name__
    sharded = ("DeepSpeed", "FSDP", "ModelParallel", "XLAFSDP")
    if name.startswith(sharded):
        return name
    # FSDP2 and tensor parallelism by the user's own hand, under any strategy
    kinds = {type(parameter).__name__ for parameter in trainer.lightning_module.parameters()}
    return "DTensor" if "DTensor" in kinds else None


def schedules_of(trainer: Trainer) -> list[tuple[Any, bool, int]]:
    """(scheduler, whether it makes a step at an epoch's end, at one of how many ends) of those that Lightning steps."""
    if not trainer.lightning_module.automatic_optimization:
        return []  # they are stepped in training_step, whenever that likes
    return [(one.scheduler, one.interval == "epoch", one.frequency) for one in trainer.lr_scheduler_configs]


def steps_to_make(trainer: Trainer) -> tuple[int | None, int | None]:
    """Optimizer steps (as `logged_step` counts them) of the run and of an epoch; None where no limit tells.

    `trainer.estimated_stepping_batches` is nearly that, but raises an error where the number of accumulated batches
    changes, and counts each of several optimizers.
    """
    batches, steps = trainer.num_training_batches, trainer.max_steps
    epoch = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else None
    limits = [steps] if steps > 0 and len(trainer.optimizers) == 1 else []
    if epoch and trainer.max_epochs is not None and trainer.max_epochs > 0:
        limits.append(epoch * trainer.max_epochs)
    return min(limits, default=None), epoch


def optimizer_name(trainer: Trainer, optimizer: Optimizer) -> str:
    """The optimizer's place in the Trainer's list, a name that survives a resume."""
    for index, candidate in enumerate(trainer.optimizers):
        if candidate is optimizer:
            return str(index)
    return ""


def clipping_of(trainer: Trainer) -> tuple[float | None, float | None]:
    """The norm that gradients are clipped to, and what each of their values is clipped to; None where it is not."""
    clip = float(trainer.gradient_clip_val or 0) or None
    by_value = trainer.gradient_clip_algorithm not in (None, "norm")
    return (None, clip) if by_value else (clip, None)


def has_loss_scaler(trainer: Trainer) -> bool:
    """Whether a loss scaler is at work (16-mixed)."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def loss_scale(trainer: Trainer) -> float:
    """The present scale of a loss scaler (16-mixed); 1 without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def remaining_loss_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """The loss scale that is still on the gradients: 1, but for optimizers (fused ones) that unscale in their step."""
    return loss_scale(trainer) if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0


def ranks_of(trainer: Trainer) -> Ranks:
    """The run's ranks, with the strategy's own exchange where torch has none (XLA)."""
    torch_can = torch.distributed.is_available() and torch.distributed.is_initialized()
    own = None if trainer.world_size == 1 or torch_can else trainer.strategy.all_gather
    return Ranks(trainer.world_size, trainer.strategy.root_device, own)


def gather_ranks(trainer: Trainer, tensor: Tensor) -> Tensor:
    """The tensor of every rank, (ranks, *shape), without gradients; all ranks must call it.

    Args:
        trainer: the Trainer.
        tensor: of one shape and dtype on all ranks, on the Trainer's device.
    """
    return ranks_of(trainer).gather(tensor)
