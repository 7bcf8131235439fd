"""The rules' view of a run: an observation of each recorded optimizer step, the losses of all steps, and facts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from bnlab_callbacks.diagnosis.observations.facts import Facts
from bnlab_callbacks.diagnosis.observations.losses import Losses
from bnlab_callbacks.diagnosis.observations.updates import EarlyChanges, MedianUpdates

_LATELY, _ENOUGH = 10, 5  # steps, observations
OF_THE_FIRST_BATCH = {"input_mean", "input_std", "input_absmax", "input_unscaled"}  # recorded once
_FALLING = 0.97
_LEAST_SCALE = 3.0  # of a loss that is not known
_LATE = 300  # steps
_SOMETHING = 0.005  # share of the loss of guessing


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
        """Whether the loss of 30 steps does not fall, and is above nine tenths of chance.

        From step 300 on half, and that over 50 steps: batches of a few samples have losses of all sizes.
        """
        late = self.now.step >= _LATE
        level = self.level(50 if late else 10)
        return self.falls() is False and (level is None or not level <= (0.5 if late else 0.9))

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

    def explains(self) -> bool:
        """Whether outputs explain some of the loss of guessing: 0.5 % over ten looks, and three standard errors."""
        known = [seen.globals["explained"] for seen in self.observations if "explained" in seen.globals]
        shares = known[-2 * _ENOUGH :]
        if len(shares) < _ENOUGH:
            return False
        return fmean(shares) > max(_SOMETHING, 3 * stdev(shares) / math.sqrt(len(shares)))

    def recent(self, quantity: str, looks: int) -> float | None:
        """Mean of a quantity without a layer over the last looks that have it; None where fewer have."""
        values = [seen.globals[quantity] for seen in self.observations if quantity in seen.globals][-looks:]
        return fmean(values) if len(values) == looks else None
