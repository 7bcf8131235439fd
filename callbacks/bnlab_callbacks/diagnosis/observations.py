"""What the rules look at: one observation for each recorded optimizer step, and the losses of all steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from bnlab_callbacks.diagnosis.moves import Moves

_RECENT = 400  # losses that are kept
_WARM = 5  # steps whose largest loss is the scale of the first losses


class NormBatch(NamedTuple):
    """What a batch norm has to normalize a channel with: so many values, of so many samples."""

    values: int
    samples: int


@dataclass
class Facts:
    """What is known about a run beside its records; None and empty for what is not known.

    Attributes:
        chance_loss: the loss of a net that knows nothing: ln C for cross entropy over C classes.
        gradient_clip: the norm that the Trainer clips gradients to.
        scaled: whether a loss scaler is at work, whose overflows are no fault.
        without_gradient: layers that an optimizer holds and whose gradient was None in every step so far.
        without_optimizer: trainable layers that no optimizer holds.
        frozen: layers with `requires_grad=False`.
        constant: layers all of whose weights were equal when training began → that weight.
        norm_eval: batch-norm layers in evaluation mode while the module trains, with trainable scales.
        norm_momentum: batch-norm layers → their momentum (None: cumulative average).
        norm_values: batch-norm layers → what the smallest training batch so far gave them.
        softmax_twice: whether the loss is the cross entropy of probabilities taken for logits.
        weights: layer → number of its weights.
        fans: linear, convolution and recurrent layers → inputs or outputs of a unit, whichever are fewer.
        rescaled: of these, the ones right before a norm that takes out their scale.
    """

    chance_loss: float | None = None
    gradient_clip: float | None = None
    scaled: bool = False
    without_gradient: tuple[str, ...] = ()
    without_optimizer: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    constant: Mapping[str, float] = field(default_factory=dict)
    norm_eval: tuple[str, ...] = ()
    norm_momentum: Mapping[str, float | None] = field(default_factory=dict)
    norm_values: Mapping[str, NormBatch] = field(default_factory=dict)
    softmax_twice: bool = False
    weights: Mapping[str, int] = field(default_factory=dict)
    fans: Mapping[str, int] = field(default_factory=dict)
    rescaled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Observation:
    """A recorded optimizer step.

    Attributes:
        step: counted from 0.
        values: quantity → layer → value, layers in order of execution; as in `GradientMonitor`, `ActivationMonitor`
            and `BatchNormMonitor`, and `weight_rms`, ‖w‖₂/√n. Empty for what was not recorded.
        whole: quantities without a layer: `output_std` (standard deviation over the batch, mean over the outputs of the
            last layer), `input_mean`, `input_std`, `input_absmax` of the batch.
        bad_rank: the rank whose loss was the first that was not finite since the observation before.
    """

    step: int
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    whole: Mapping[str, float] = field(default_factory=dict)
    bad_rank: int | None = None

    def of(self, quantity: str) -> Mapping[str, float]:
        """The layers' values of a quantity."""
        return self.values.get(quantity, {})


class Losses:
    """The training losses of all optimizer steps up to the present one; steps without a loss are missing."""

    def __init__(self) -> None:
        self.count = 0
        self.first: float | None = None
        self.largest_early = 0.0  # magnitude among the first ones, before the present one
        self.recent: deque[float] = deque(maxlen=_RECENT)

    def add(self, loss: float) -> None:
        """Take in the loss of the next step."""
        previous = self.last
        if previous is not None and self.count <= _WARM and math.isfinite(previous):
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

    def lasting(self, holds: Callable[[float], bool]) -> int:
        """So many of the last losses in a row are such."""
        return next((n for n, loss in enumerate(reversed(self.recent)) if not holds(loss)), len(self.recent))

    def mean(self, steps: int, before: int = 0) -> float | None:
        """Mean of the losses of `steps` steps that ended `before` steps ago; None where there are not as many."""
        if len(self.recent) < steps + before:
            return None
        values = list(self.recent)[len(self.recent) - steps - before : len(self.recent) - before]
        return fmean(values)

    def smooth(self) -> float | None:
        """Mean of the last ten losses, or of as many as there are."""
        return fmean(list(self.recent)[-10:]) if self.recent else None

    def state_dict(self) -> dict[str, Any]:
        """Lists and numbers."""
        return {
            "count": self.count,
            "first": self.first,
            "largest_early": self.largest_early,
            "recent": list(self.recent),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self.count, self.first = state["count"], state["first"]
        self.largest_early = state["largest_early"]
        self.recent = deque(state["recent"], maxlen=_RECENT)


@dataclass
class History:
    """Everything a rule may look at: the present observation last.

    Attributes:
        observations: the last recorded steps.
        first: the first recorded step of the run.
        losses: of all steps up to the present one.
        facts: about the run.
        moves: of the median layer, at all looks.
    """

    observations: Sequence[Observation]
    first: Observation
    losses: Losses
    facts: Facts
    moves: Moves = field(default_factory=Moves)

    @property
    def now(self) -> Observation:
        """The present observation."""
        return self.observations[-1]

    def initial_gains(self) -> dict[str, float]:
        """Layers → root mean square of their weights at the first look times √fan, about 1 in usual initializations."""
        fans = self.facts.fans
        return {k: rms * math.sqrt(fans[k]) for k, rms in self.first.of("weight_rms").items() if k in fans}

    def scale(self) -> float | None:
        """The size of a loss of a net that has learned nothing: ln C where it is known, or the first loss."""
        chance, first = self.facts.chance_loss, self.losses.first
        if chance is not None:
            return chance if first is None else max(first, chance)
        return self.losses.largest_early or None

    def level(self) -> float | None:
        """The present loss, over ten steps, as a share of chance (or of the first losses); None without a loss."""
        smooth = self.losses.smooth()
        reference = self.facts.chance_loss or self.losses.largest_early
        return None if smooth is None or not reference else smooth / reference

    def unlearned(self, share: float = 0.5) -> bool:
        """Whether the loss is above a share of chance; also true where there is no loss to see."""
        level = self.level()
        return level is None or not level <= share
