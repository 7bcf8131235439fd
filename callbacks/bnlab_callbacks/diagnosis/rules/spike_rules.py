"""A rule about spikes of the loss, for those who ask for it: `TrainingDiagnosis(rules=[LOSS_SPIKE])`.

Not among the others: in large models that recover from spikes they are of interest, in small ones single hard batches
are.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import History, Observation
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.rule import Rule

_WINDOW, _LEAST = 100, 20  # losses that a loss is compared with, and how many there must be
_DEVIATIONS = 10.0  # robust standard deviations above their median
_RISE = 0.1  # of the median, at least: losses may be all but equal
_SIGMA = 1.4826  # standard deviations of a normal distribution to one median absolute deviation
_MOVED = 3.0  # × what is usual for a layer


class _Spike(NamedTuple):
    step: int
    loss: float
    usual: float  # the median
    deviations: float


def loss_spike(history: History) -> Verdict | None:
    """A loss since the last look that lies 10 robust deviations, and a tenth, above the median of the 100 before.

    A robust deviation is 1.4826 times the median absolute deviation. The losses of two looks are not compared with each
    other, so a spike does not hide behind its own first steps. The layer is the one that moved first: at the first
    recorded step, from the last one before the spike on, where any layer's gradient or output is three times its median
    of the recorded steps before, the one that is most. Of normal noise
    one loss in 10²³ is so far off, of log-normal noise of 20 % one in 10⁷.
    """
    spike = _largest(history)
    if spike is None:
        return None
    evidence = (
        f"the loss was {spike.loss:.4g} at step {spike.step}, {spike.deviations:.0f} robust deviations above the "
        f"median of those before ({spike.usual:.4g})"
    )
    moved = _moved_first(history, spike.step)
    if moved is None:
        return Verdict(evidence, since=spike.step)
    layer, quantity, times, step = moved
    return Verdict(
        f"{evidence}; {layer} moved first: {quantity} {times:.2g} times as usual at step {step}",
        layer,
        since=spike.step,
    )


def _largest(history: History) -> _Spike | None:
    """The largest loss since the last observation, if it is a spike."""
    losses = list(history.losses.recent)
    if history.losses.count <= history.now.step:
        return None  # they are of recorded steps alone
    looked = len(history.observations) > 1
    new = history.now.step - history.observations[-2].step if looked else 1
    new = min(new, len(losses))
    before = [loss for loss in losses[: len(losses) - new][-_WINDOW:] if math.isfinite(loss)]
    finite = [(loss, place) for place, loss in enumerate(losses[-new:]) if math.isfinite(loss)]
    if len(before) < _LEAST or not finite:
        return None
    loss, place = max(finite)
    usual = median(before)
    deviation = _SIGMA * median(abs(each - usual) for each in before)
    rise = loss - usual
    if rise <= max(_DEVIATIONS * deviation, _RISE * abs(usual)):
        return None
    return _Spike(history.now.step - new + 1 + place, loss, usual, rise / deviation if deviation else math.inf)


def _moved_first(history: History, spike: int) -> tuple[str, str, float, int] | None:
    """Layer, what of it, how many times as usual, and at which recorded step."""
    seen = list(history.observations)
    start = max((place for place, one in enumerate(seen) if one.step < spike), default=0)
    for place in range(start, len(seen)):
        found = [
            (times, layer, words)
            for quantity, words in (("grad_rms", "its gradient was"), ("act_absmax", "its largest output was"))
            for layer, times in _times(seen[place], seen[:place], quantity).items()
        ]
        if found and max(found)[0] > _MOVED:
            times, layer, words = max(found)
            return layer, words, times, seen[place].step
    return None


def _times(now: Observation, before: Sequence[Observation], quantity: str) -> dict[str, float]:
    """Each layer's value as a multiple of its median in the observations before."""
    found = {}
    for layer, value in now.of(quantity).items():
        past = [one.of(quantity)[layer] for one in before if layer in one.of(quantity)]
        usual = median(past) if past else 0.0
        if usual > 0 and math.isfinite(value):
            found[layer] = value / usual
    return found


LOSS_SPIKE = Rule(
    "loss_spike", loss_spike, "warning", advice("lower_learning_rate_or_clip", "check_inputs"), ("loss",), explains=()
)
