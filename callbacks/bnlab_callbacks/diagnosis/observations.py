"""The rules' view of a run: an observation of each recorded optimizer step, the losses of all steps, and facts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from bnlab_callbacks.diagnosis.optimizer_state import Coverage, OptimizerState

_RECENT_LOSSES = 400  # that are kept
_FIRST_LOSSES = 5  # whose largest is the scale of a loss before anything is learned
_MOST_UPDATES = 128  # that are kept
_WARMING_UP = 1.5  # times
_LATELY, _ENOUGH = 10, 5  # steps, observations
OF_THE_FIRST_BATCH = {"input_mean", "input_std", "input_absmax", "input_unscaled"}  # recorded once
_FALLING = 0.97
_LEAST_SCALE = 3.0  # of a loss that is not known
_LATE = 300  # steps


class NormBatch(NamedTuple):
    """The smallest batch that a batch norm got: values of one channel, and samples."""

    values: int
    samples: int


KINDS = ("", "cross_entropy", "binary", "squared", "absolute")  # of tasks
# whose values a loss may consume; the last two divide by a sum over one unit, or over the samples
OUTPUTS = (
    *("", "sigmoid", "hard sigmoid", "tanh", "ReLU", "softplus", "exp", "log softmax", "log sigmoid", "softmax"),
    *("softmax of one", "softmax of the batch"),
)


class Task(NamedTuple):
    """What a loss compares, seen in the training step; numbers alone, so that ranks can exchange them.

    Attributes:
        kind: place in `KINDS`; 0 where it is unknown.
        chance: the loss of the best constant output on the targets so far; NaN where it is unknown.
        classes: number of classes; 2 for numbers between 0 and 1; 0 without.
        output: place in `OUTPUTS` of the function that made the outputs; 0 for another.
        low: the least value that this function reaches.
        high: the largest.
        broadcast: whether each of N outputs is compared with each of N targets.
        negated: whether the loss is the negative of one of this kind.
        probabilities: whether the loss takes probabilities for logits.
        not_normalised: how far outputs that should be log probabilities are from that: |ln Σ exp|.
        label_low: the least target so far.
        label_high: the largest.
        label_count: number of targets so far.
    """

    kind: float = 0
    chance: float = math.nan
    classes: float = 0
    output: float = 0
    low: float = -math.inf
    high: float = math.inf
    broadcast: float = 0
    negated: float = 0
    probabilities: float = 0
    not_normalised: float = 0
    label_low: float = math.inf
    label_high: float = -math.inf
    label_count: float = 0

    @property
    def name(self) -> str:
        """Of its kind; empty where it is unknown."""
        return KINDS[int(self.kind)]

    @property
    def output_function(self) -> str:
        """What made the outputs; empty for another function than those in `OUTPUTS`."""
        return OUTPUTS[int(self.output)]

    @property
    def of_numbers(self) -> bool:
        """Whether it is a regression, whose targets may lie anywhere."""
        return self.name in ("squared", "absolute")

    @property
    def labels_differ(self) -> bool:
        """Whether two targets so far were different."""
        return self.label_high > self.label_low


@dataclass
class Facts:
    """A run's properties beside its records; None or empty where they are not known.

    Attributes:
        chance_loss: the loss of guessing, the best constant output's: about ln C for cross entropy over C classes.
        task: what the loss compares.
        gradient_clip: the norm that the Trainer clips gradients to.
        clip_value: what the Trainer clips each of their values to.
        scaled: whether a loss scaler is in use, whose overflows are no fault.
        without_gradient: layers that an optimizer holds and whose gradient was None in every step so far.
        without_optimizer: trainable layers that no optimizer holds.
        frozen: layers with `requires_grad=False`.
        constant: layers all of whose weights were equal when training began → that weight.
        gates: activations that weigh something: gates, soft caps, attention scores; saturated on purpose.
        norm_eval: batch-norm layers in evaluation mode while the module trains, with trainable scales.
        norm_momentum: batch-norm layers → their momentum (None: cumulative average).
        norm_values: batch-norm layers → the smallest training batch so far.
        softmax_twice: whether the loss takes probabilities for logits.
        weights: trained layer → number of its weights, in order of execution.
        fans: linear, convolution and recurrent layers → inputs or outputs of a unit, whichever are fewer.
        rescaled: those of them right before a norm that cancels their scale.
        optimizers: each as it was when the step began.
        coverage: how much of the model they hold.
        resting: layers of an optimizer's groups with a learning rate of 0, beside others.
        samples: that the present step is made of.
        run_steps: optimizer steps that the run is to have.
        epoch_steps: optimizer steps of an epoch.
        normalised: whether there are norms of any kind in the net.
        bare_pairs: linear layers that follow one another with nothing between them.
        has: what advice need not propose; see `fitting_advice.fitting`.
        inputs: linear and convolution layers → inputs of a unit.
    """

    chance_loss: float | None = None
    task: Task = field(default_factory=Task)
    gradient_clip: float | None = None
    clip_value: float | None = None
    scaled: bool = False
    without_gradient: tuple[str, ...] = ()
    without_optimizer: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    constant: Mapping[str, float] = field(default_factory=dict)
    gates: tuple[str, ...] = ()
    norm_eval: tuple[str, ...] = ()
    norm_momentum: Mapping[str, float | None] = field(default_factory=dict)
    norm_values: Mapping[str, NormBatch] = field(default_factory=dict)
    softmax_twice: bool = False
    weights: Mapping[str, int] = field(default_factory=dict)
    fans: Mapping[str, int] = field(default_factory=dict)
    rescaled: frozenset[str] = frozenset()
    optimizers: tuple[OptimizerState, ...] = ()
    coverage: Coverage | None = None
    resting: tuple[str, ...] = ()
    samples: int | None = None
    run_steps: int | None = None
    epoch_steps: int | None = None
    normalised: bool = False
    bare_pairs: tuple[tuple[str, str], ...] = ()
    has: frozenset[str] = frozenset()
    inputs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """A recorded optimizer step.

    Attributes:
        step: counted from 0.
        values: quantity → layer → value, layers in order of execution; as in `GradientMonitor`, `ActivationMonitor`
            and `BatchNormMonitor`, and `weight_rms`, ‖w‖₂/√n. Empty for what was not recorded.
        globals: quantities without a layer; `samples` in the batch. Of what the first layer gets: `input_mean`,
            `input_std`, `input_absmax`, and `input_unscaled`, 1 for what has no scale (one-hot, sound). Of the last
            layer: `last_absmax`. Of the outputs that the loss consumes: `output_std` (over the batch, mean over
            columns), `explained` (share of the loss of guessing on the targets so far), `r_squared` (of the variance of
            the batch's targets), `outside` (share of targets that the outputs cannot reach). Of the targets:
            `target_std`.
        bad_rank: the rank of the first loss since the last observation that was not finite.
    """

    step: int
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    globals: Mapping[str, float] = field(default_factory=dict)
    bad_rank: int | None = None

    def relative_gradients(self) -> dict[str, float]:
        """‖g‖/‖w‖ of every layer; a layer of zeros has none."""
        sizes = self.of("weight_rms")
        return {layer: rms / sizes[layer] for layer, rms in self.of("grad_rms").items() if sizes.get(layer)}

    @property
    def whole(self) -> Mapping[str, float]:
        """`globals`, by the name that rules of version 0.1.0 use."""
        return self.globals

    def of(self, quantity: str) -> Mapping[str, float]:
        """The layers' values of a quantity."""
        return self.values.get(quantity, {})


class Losses:
    """The training losses of all optimizer steps up to the present one, but for steps without a loss."""

    def __init__(self) -> None:
        self.count = 0
        self.first: float | None = None
        self.largest_early = 0.0  # the largest magnitude of the first ones, before the present one
        self.recent: deque[float] = deque(maxlen=_RECENT_LOSSES)

    def add(self, loss: float) -> None:
        """Take in the loss of the next step."""
        previous = self.last
        if previous is not None and self.count <= _FIRST_LOSSES and math.isfinite(previous):
            self.largest_early = max(self.largest_early, abs(previous))
        self.count += 1
        self.recent.append(loss)
        if not math.isfinite(loss):
            return
        if self.first is None:
            self.first = loss
            self.largest_early = max(self.largest_early, abs(loss))

    @property
    def last(self) -> float | None:
        """The present step's loss."""
        return self.recent[-1] if self.recent else None

    def streak(self, condition: Callable[[float], bool]) -> int:
        """The number of losses in a row, up to the present one, that meet a condition."""
        return next((n for n, loss in enumerate(reversed(self.recent)) if not condition(loss)), len(self.recent))

    def mean(self, steps: int, before: int = 0) -> float | None:
        """Mean loss of `steps` steps, the last of them `before` steps ago; None where too few are known.

        Losses that are not finite are left out, unless all are: their steps may have been skipped.
        """
        if len(self.recent) < steps + before:
            return None
        return _mean(list(self.recent)[len(self.recent) - steps - before : len(self.recent) - before])

    def smooth(self, steps: int = 10) -> float | None:
        """Mean of the last losses, or of all where there are fewer; of the finite ones, as `mean`."""
        return _mean(list(self.recent)[-steps:]) if self.recent else None

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: lists and numbers."""
        return {
            "count": self.count,
            "first": self.first,
            "largest_early": self.largest_early,
            "recent": list(self.recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.count, self.first = state["count"], state["first"]
        self.largest_early = state["largest_early"]
        self.recent = deque(state["recent"], maxlen=_RECENT_LOSSES)


def _mean(losses: Sequence[float]) -> float:
    return fmean([loss for loss in losses if math.isfinite(loss)] or losses)


def median_layer(values: Mapping[str, float]) -> str:
    """The layer with the median value."""
    return sorted(values, key=lambda layer: values[layer])[len(values) // 2]


class MedianUpdates:
    """‖Δw‖/‖w‖ of the median layer at the recorded steps of a run; every second one goes when there are over 128."""

    def __init__(self) -> None:
        self._at: dict[int, float] = {}

    def add(self, step: int, update_ratio: Mapping[str, float]) -> None:
        """Take in a recorded step: layer → log10 of its ‖Δw‖/‖w‖; empty where none was recorded."""
        if update_ratio:
            self._at[step] = 10 ** update_ratio[median_layer(update_ratio)]
        if len(self._at) > _MOST_UPDATES:
            self._at = dict(list(self._at.items())[::2])

    def warming_up(self, step: int) -> bool:
        """Whether updates in the last quarter of the run up to `step` are 1.5 times those in its second quarter.

        Steadily growing ones are 2.3 times as large. Means are compared, since single steps are noisy.
        """
        now = [ratio for at, ratio in self._at.items() if at >= 3 * step / 4]
        before = [ratio for at, ratio in self._at.items() if step / 4 < at <= step / 2]
        return bool(now and before) and fmean(now) > _WARMING_UP * fmean(before)

    def state_dict(self) -> list[Any]:
        """The state for a checkpoint: lists and numbers."""
        return [[step, ratio] for step, ratio in self._at.items()]

    def load_state_dict(self, state: list[Any]) -> None:
        """Take over the state of a checkpoint."""
        self._at = dict(state)


class EarlyChanges:
    """The median layer's share of weights that a step changed, at the recorded steps of a run's beginning."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def add(self, step: int, changed_frac: Mapping[str, float]) -> None:
        """Take in a recorded step: layer → share; empty where none was recorded, NaN where a layer had no gradient."""
        known = {layer: share for layer, share in changed_frac.items() if math.isfinite(share)}
        if known and len(self.at) < _MOST_UPDATES:
            self.at[step] = known[median_layer(known)]


@dataclass
class History:
    """Everything that a rule may use.

    Attributes:
        observations: the last recorded steps, the present one last.
        first: the first recorded step of the run.
        losses: of all steps up to the present one.
        facts: about the run.
        median_updates: ‖Δw‖/‖w‖ of the median layer, over the whole run.
        early_changes: how many weights steps changed at its beginning, where they are of 16 bits.
    """

    observations: Sequence[Observation]
    first: Observation
    losses: Losses
    facts: Facts
    median_updates: MedianUpdates = field(default_factory=MedianUpdates)
    early_changes: EarlyChanges = field(default_factory=EarlyChanges)

    @property
    def now(self) -> Observation:
        """The present observation."""
        return self.observations[-1]

    def lately(self) -> Sequence[Observation]:
        """The observations of the last ten steps, five at least; none where so many do not reach so far back.

        What holds in all of them for one layer lasts: latches alone see that it holds for some layer.
        """
        step, seen = self.now.step, list(self.observations)
        lately = [one for one in seen if one.step > step - _LATELY]
        lately = lately if len(lately) >= _ENOUGH else seen[-_ENOUGH:]
        return lately if len(lately) >= _ENOUGH and step - lately[0].step >= _LATELY - 1 else []

    def falls(self) -> bool | None:
        """Whether the last ten losses are a tenth below those of twenty steps before; None where too few are known."""
        now, before = self.losses.mean(10), self.losses.mean(10, before=20)
        return None if now is None or before is None else now < 0.9 * before

    def stuck(self) -> bool:
        """Whether the loss of 30 steps does not fall, and is above nine tenths of chance; from step 300 on, half."""
        return self.falls() is False and self.unlearned(0.5 if self.now.step >= _LATE else 0.9)

    def initial_gains(self) -> dict[str, float]:
        """Layers → root mean square of their first weights times √fan; about 1 in usual initializations."""
        fans = self.facts.fans
        return {k: rms * math.sqrt(fans[k]) for k, rms in self.first.of("weight_rms").items() if k in fans}

    def scale(self) -> float | None:
        """The loss of a net that has learned nothing: that of guessing or the first loss, whichever is larger.

        Where that of guessing is unknown, the largest of the first losses, 3 at least: a first loss near 0 (of a queue
        that fills, of a net that judges another) is no measure of what comes. None without a loss.
        """
        chance, first = self.facts.chance_loss, self.losses.first
        if chance is not None:
            return chance if first is None else max(first, chance)
        return max(self.losses.largest_early, _LEAST_SCALE) if self.losses.count else None

    def level(self, steps: int = 10) -> float | None:
        """The mean of the last losses as a share of chance (or, where that is unknown, of the first losses).

        An error that is far above chance, as of numbers far from 0, is a share of the first losses while it falls by
        3 % in 50 steps. None without a loss.
        """
        smooth, reference = self.losses.smooth(steps), self.facts.chance_loss or self.losses.largest_early
        if smooth is None or not reference:
            return None
        now, before = self.losses.mean(25), self.losses.mean(25, before=50)
        if self.facts.task.of_numbers and smooth > reference and now is not None and before is not None:
            reference = self.losses.largest_early if now < _FALLING * before else reference
        return smooth / reference

    def unlearned(self, share: float = 0.5) -> bool:
        """Whether the loss is above a share of chance; true as well where no loss is known."""
        level = self.level()
        return level is None or not level <= share

    def recent(self, quantity: str, looks: int) -> float | None:
        """Mean of a quantity without a layer over the last looks that have it; None where fewer have."""
        values = [seen.globals[quantity] for seen in self.observations if quantity in seen.globals][-looks:]
        return fmean(values) if len(values) == looks else None
