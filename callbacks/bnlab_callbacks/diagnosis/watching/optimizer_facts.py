"""Facts about a run's optimizers at a look: coverage, learning rates and schedules. Nothing is read off a device."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from bnlab_callbacks.core.weights import find_weights
from bnlab_callbacks.diagnosis.observations import Coverage, OptimizerState, Schedule
from bnlab_callbacks.diagnosis.watching.cleared_gradients import ClearedGradients

_NOTHING = 1e-4  # × the highest rate
_RETURNS = (lr_scheduler.CosineAnnealingLR, lr_scheduler.CosineAnnealingWarmRestarts, lr_scheduler.CyclicLR)
# those of torch.optim that divide by √v + ε, with ε added in the parameters' precision
_DIVIDES_BY_EPSILON = ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta")


class OptimizerWatch:
    """Follows a run's optimizers; what is to be read is read in recorded steps only.

    Args:
        model: the model; None for none yet.
        optimizers: all that train it.
        schedules: (scheduler, whether it makes a step at the end of an epoch, at one of how many ends).
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        optimizers: Sequence[Optimizer] = (),
        schedules: Sequence[tuple[Any, bool, int]] = (),
    ) -> None:
        self.cleared = ClearedGradients()
        self._model = model
        self._optimizers = list(optimizers)
        known = {
            id(getattr(scheduler, "optimizer", None)): schedule_of(scheduler, by_epoch, every)
            for scheduler, by_epoch, every in schedules
        }
        self._states = [
            OptimizerState(
                type(one).__name__, schedule=known.get(id(one)), own=_own(one), lost_epsilon=lost_epsilon(one)
            )
            for one in self._optimizers
        ]
        self._resting: tuple[str, ...] = ()
        self._coverage = coverage(model, self._optimizers) if model is not None and optimizers else None
        alone = model is not None and self._coverage is not None and not self._coverage.held
        trainable = [one for one in model.parameters() if one.requires_grad] if model is not None and alone else []
        self._versions = [(one, one._version) for one in trainable]

    def begin_step(self, step: int) -> None:
        """A recorded step begins: read the rates that it is made with."""
        self._states = [
            _at(step, state, learning_rate(one), base_rate(one))
            for state, one in zip(self._states, self._optimizers, strict=True)
        ]
        resting = {id(parameter) for one in self._optimizers for parameter in at_rest(one)}
        weights = find_weights(self._model) if resting and self._model is not None else ()
        self._resting = tuple(weight.layer for weight in weights if id(weight.parameter) in resting)

    def before_step(self, optimizer: Optimizer, recorded: bool) -> None:
        """An optimizer step is about to be made, of gradients that are there."""
        self.cleared.before_step(optimizer, recorded)
        if recorded and self._versions:
            self._look_at_coverage()

    def facts(self) -> dict[str, Any]:
        """The fields of `Facts`, as of now."""
        states = [
            state._replace(uncleared=self.cleared.uncleared(one))
            for state, one in zip(self._states, self._optimizers, strict=True)
        ]
        return {"optimizers": tuple(states), "coverage": self._coverage, "resting": self._resting}

    def _look_at_coverage(self) -> None:
        """Only while no optimizer holds anything that trains: else there is nothing to say."""
        if self._model is None or self._coverage is None:
            return
        self._coverage = coverage(self._model, self._optimizers)._replace(
            moved=any(one._version != version for one, version in self._versions),
            reached=self._coverage.reached or any(one.grad is not None for one, _ in self._versions),
        )
        if self._coverage.held:
            self._versions = []


def _at(step: int, state: OptimizerState, rate: float | None, base: float | None) -> OptimizerState:
    if rate is None:
        return state._replace(rate=None, base=None, nothing_since=None)
    highest = max(state.highest, rate)
    nothing = rate < _NOTHING * max(highest, base or 0.0)
    since = (step if state.nothing_since is None else state.nothing_since) if nothing else None
    began = rate if state.began is None else state.began
    return state._replace(rate=rate, base=base, began=began, highest=highest, nothing_since=since)


def coverage(model: nn.Module, optimizers: Sequence[Optimizer]) -> Coverage:
    """How much of a model its optimizers hold."""
    own = {id(one): one for one in model.parameters()}
    held = {id(one): one for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]}
    trainable = {key: one.numel() for key, one in own.items() if one.requires_grad and _is_there(one)}
    return Coverage(
        sum(trainable.values()),
        sum(size for key, size in trainable.items() if key in held),
        sum(one.numel() for key, one in held.items() if key in own and not one.requires_grad and _is_there(one)),
        sum(one.numel() for key, one in held.items() if key not in own and _is_there(one)),
    )


def _is_there(parameter: Tensor) -> bool:
    return not isinstance(parameter, nn.parameter.UninitializedParameter)


def learning_rate(optimizer: Optimizer) -> float | None:
    """The largest of an optimizer's groups that train anything; None where some rate is not to be read on the host."""
    rates = [_number(group.get("lr")) for group in optimizer.param_groups if _trains(group)]
    return None if None in rates else max((rate for rate in rates if rate is not None), default=None)


def at_rest(optimizer: Optimizer) -> list[Tensor]:
    """Parameters of groups with a learning rate of 0, where other groups have another one: they are meant to rest."""
    rates = [_number(group.get("lr")) for group in optimizer.param_groups]
    if not any(rates):
        return []
    return [
        one for group, rate in zip(optimizer.param_groups, rates, strict=True) if rate == 0 for one in group["params"]
    ]


def base_rate(optimizer: Optimizer) -> float | None:
    """The largest rate that an optimizer's schedule starts from or works up to; its rate without a schedule."""
    keys = ("max_lr", "initial_lr", "lr")
    given = [
        [_number(group[key]) for key in keys if key in group] for group in optimizer.param_groups if _trains(group)
    ]
    rates = [max((rate for rate in some[:2] if rate is not None), default=None) for some in given]
    return max((rate for rate in rates if rate is not None), default=None)


def _trains(group: Mapping[str, Any]) -> bool:
    return any(parameter.requires_grad for parameter in group["params"])


def _number(rate: Any) -> float | None:
    if isinstance(rate, Tensor):
        return float(rate) if rate.numel() == 1 and rate.device.type == "cpu" else None
    return float(rate) if isinstance(rate, int | float) else None


def lost_epsilon(optimizer: Optimizer) -> float | None:
    """The ε of an Adam (or RMSprop, …) of torch.optim that is 0 in float16, where it has parameters in float16."""
    if type(optimizer).__name__ not in _DIVIDES_BY_EPSILON or not _own(optimizer):
        return None
    for group in optimizer.param_groups:
        epsilon = _number(group.get("eps")) or 0.0
        lost = epsilon > 0 and float(torch.tensor(epsilon, dtype=torch.float16)) == 0
        if lost and not group.get("fused") and any(one.dtype == torch.float16 for one in group["params"]):
            return epsilon
    return None


def _own(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith("torch.optim")


def schedule_of(scheduler: Any, by_epoch: bool, every: int) -> Schedule:
    """What is known of a scheduler, by its attributes; its own functions are not called: they may count calls."""
    peak, rate = _peak(scheduler)
    return Schedule(
        type(scheduler).__name__, by_epoch, max(int(every), 1), _length(scheduler), peak, rate, _returns(scheduler)
    )


def _returns(scheduler: Any) -> bool:
    parts = getattr(scheduler, "_schedulers", None) or [scheduler]
    return any(isinstance(part, _RETURNS) for part in parts)


def _length(scheduler: Any) -> int | None:
    """Own steps from start to end; of those that wait for others, and of restarts and plateaus, nothing is known."""
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        last = _length(scheduler._schedulers[-1])
        return None if last is None else sum(scheduler._milestones[-1:]) + last
    if isinstance(scheduler, lr_scheduler.OneCycleLR):
        return int(scheduler.total_steps)
    if isinstance(scheduler, lr_scheduler.CosineAnnealingLR):
        return int(scheduler.T_max)
    if isinstance(scheduler, lr_scheduler.PolynomialLR):
        return int(scheduler.total_iters)
    return _given(scheduler, "num_training_steps")


def _peak(scheduler: Any) -> tuple[int | None, float | None]:
    """Own steps until the rate is highest, and that rate."""
    if isinstance(scheduler, lr_scheduler.OneCycleLR):
        phases, rates = scheduler._schedule_phases, [group.get("max_lr") for group in scheduler.optimizer.param_groups]
        known = [rate for rate in map(_number, rates) if rate is not None]
        return int(phases[0]["end_step"]), max(known, default=None)
    base = max((rate for rate in map(_number, getattr(scheduler, "base_lrs", ())) if rate is not None), default=None)
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        return _peak(scheduler._schedulers[0])
    if isinstance(scheduler, lr_scheduler.LinearLR) and scheduler.start_factor < scheduler.end_factor:
        return int(scheduler.total_iters), base
    return _given(scheduler, "num_warmup_steps"), base


def _given(scheduler: Any, name: str) -> int | None:
    """A whole number that a lambda of the scheduler is a `partial` with, as in transformers' schedules."""
    lambdas = getattr(scheduler, "lr_lambdas", ())
    given = [keywords.get(name) for one in lambdas if isinstance(keywords := getattr(one, "keywords", None), dict)]
    return next((number for number in chain(given) if isinstance(number, int) and number > 0), None)
