"""Rules about the size of steps: too large, or so small that the loss cannot fall.

Ranges in the docstrings: the thesis's nets on MNIST and CIFAR-10, three seeds, and, where it says so, the small MLPs,
CNNs, LSTMs, ResNets and transformers of the fault matrix (docs/diagnosis.md) with SGD, Adam and AdamW, seeds 0 and 1.
"""

import math
from collections.abc import Iterable, Mapping, Set
from statistics import median_low

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import History, Observation, median_layer
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.rule import Rule

_PEAK = 3.0
_FEW = 4  # samples
_LARGE_MOVE = -1.3  # log10(‖Δw‖/‖w‖), 5 % in one step
_GROWN, _GROWN_PER_STEP, _FROM_NOTHING, _UNLEARNED = 3.0, 0.1, 0.1, 0.7
_SMALL_MOVE, _PACE = -4.0, 1e-3


def learning_rate_too_high(history: History) -> Verdict | None:
    """Steps of more than 5 % of a layer's weights, while the loss is three times that of guessing.

    The median of five losses in a row: with batches of one, single losses are 27 times the first ones in runs that
    learn well, and after one large step some nets are back at the next. Healthy runs make large steps too, after a
    small initialization, but their loss stays below 2.1 times.
    """
    scale, last = history.scale(), history.losses.last
    moves = {k: v for seen in list(history.observations)[-20:] for k, v in seen.of("update_ratio").items()}
    if scale is None or last is None or not moves or history.now.step < 1:
        return None
    peak = _typical_peak(history.losses.recent, history.facts.samples)
    layer = max(moves, key=lambda name: moves[name])
    if not (peak > _PEAK * scale and moves[layer] > _LARGE_MOVE):
        return None
    return Verdict(
        f"the loss went up to {peak:.3g}, {peak / scale:.1f} times where it began, with steps of "
        f"{10 ** moves[layer]:.1%} of the weights (at most {10**_LARGE_MOVE:.0%} is usual)",
        layer,
    )


def _typical_peak(losses: Iterable[float], samples: int | None) -> float:
    """The largest median of five losses in a row that end in the last twenty; those that are not finite do not count.

    Of the first losses, where there are fewer. With batches of one to three samples it is the median of twenty.
    """
    known = [loss for loss in losses if math.isfinite(loss)]
    if samples is not None and samples < _FEW:
        return median_low(known[-20:]) if len(known) >= 20 else 0.0
    known = known[-20:]
    return max((median_low(known[max(end - 5, 0) : end]) for end in range(1, len(known) + 1)), default=0.0)


def steps_too_large(history: History) -> Verdict | None:
    """From step 20 on: the median layer moves by more than 5 % in a step, for twenty steps, near the loss of chance.

    Adam's steps do not grow with the gradient, so that the loss need not jump. Healthy MLPs: 4.5 % at most (batch norm,
    N(0, 1e-4²)), 1.1 % without a special initialization.
    """
    moves = sorted(history.now.of("update_ratio").items(), key=lambda item: item[1])
    if not moves or history.now.step < 20 or not history.unlearned(0.8):
        return None
    layer, move = moves[len(moves) // 2]
    if not move > _LARGE_MOVE:
        return None
    return Verdict(
        f"a step moves it, the median layer, by {10**move:.0%} of its weights ({10**_LARGE_MOVE:.0%})", layer
    )


def weights_overwritten(history: History) -> Verdict | None:
    """The median layer's weights became 3 times as large as at the start, by 10 % and more for each step until then.

    What a net begins with is lost in steps whose sum is larger than it, and weights that have grown so fast shrink the
    steps relative to them again: no step need be above 5 % for long. Only while the loss is above 70 % of chance, that
    of the last ten steps and that of the last three (a fast fall needs large weights where targets are large; of
    numbers, none that is below the first loss counts), and over layers that began at a tenth of a usual initialization
    or more: from nothing, healthy weights grow as well.
    Measured in the fault matrix's first 20 steps: 1.3 times at most in healthy runs, 5.1 and more in transformers with
    100 times the usual learning rate (16 in a ResNet). A net of a dozen weights that learns with Adam: 5.8 in 80 steps.
    """
    gains, first = history.initial_gains(), history.first
    counted = {layer for layer, gain in gains.items() if gain >= _FROM_NOTHING}
    growth = _growth(history.now, first, counted)
    level, now = history.level(), history.level(3)
    if not growth or level is None or now is None or not min(level, now) > _UNLEARNED:
        return None
    if history.facts.task.of_numbers and (history.losses.smooth(3) or 0.0) < (history.losses.first or 0.0):
        return None
    layer = median_layer(growth)
    if not growth[layer] > _GROWN or not any(
        _fast(_growth(seen, first, counted), seen.step - first.step) for seen in history.observations
    ):
        return None
    steps = history.now.step - first.step
    return Verdict(f"its weights, the median layer's, have grown {growth[layer]:.3g}-fold in {steps} steps", layer)


def _growth(seen: Observation, first: Observation, counted: Set[str]) -> dict[str, float]:
    began = first.of("weight_rms")
    return {layer: rms / began[layer] for layer, rms in seen.of("weight_rms").items() if layer in counted}


def _fast(growth: Mapping[str, float], steps: int) -> bool:
    return bool(growth) and growth[median_layer(growth)] > max(_GROWN, 1 + _GROWN_PER_STEP * steps)


def learning_rate_too_low(history: History) -> Verdict | None:
    """Steps that move the median layer by less than 1e-4 and the loss by less than a thousandth, at most.

    To first order a step changes the loss by ‖gradient‖·‖Δw‖ at most, summed over the layers. Where that is below a
    thousandth of the loss of guessing, the loss needs more than 1000 steps to fall, whatever the optimizer. Both must
    be so at the first step and now, and the steps not be growing, as they are in a warm-up; the loss is still above 90
    % of chance. A schedule that holds the rate below half of its base is another thing: `schedule_rules`. Measured in
    the fault matrix from step 20 on, learning rate a thousandth of the usual: moves of 4e-6 to 4e-5, and 2e-6 to 8e-4
    of the loss; healthy runs that have not learned yet: 2.4e-4 and more, and 1e-3 and more but for single steps (7e-4,
    vanilla sigmoid MLP).
    """
    moves, first = history.now.of("update_ratio"), history.first.of("update_ratio")
    if any(state.held_back for state in history.facts.optimizers):
        return None
    chance = history.facts.chance_loss or history.losses.largest_early
    if not moves or not first or not chance or not history.unlearned(0.9):
        return None
    move, began = (ratios[median_layer(ratios)] for ratios in (moves, first))
    if math.isinf(move) or not max(move, began) < _SMALL_MOVE or history.median_updates.warming_up(history.now.step):
        return None
    pace = largest_fall(history.now, history.facts.weights) / chance
    if not pace < _PACE:
        return None
    return Verdict(
        f"a step moves the median layer by {10**move:.1e} of its weights (below {10**_SMALL_MOVE:.0e}), and the loss "
        f"by {pace:.1e} of that of guessing at most"
    )


def largest_fall(seen: Observation, sizes: Mapping[str, int]) -> float:
    """How far a step can lower the loss, to first order: ‖gradient‖·‖Δw‖ of each layer, summed."""
    gradients, weights = seen.of("grad_rms"), seen.of("weight_rms")
    return sum(
        gradients[layer] * weights[layer] * 10**move * sizes.get(layer, 0)
        for layer, move in seen.of("update_ratio").items()
        if layer in gradients and layer in weights
    )


_LOWER = advice("a_tenth_of_the_learning_rate", "warm_up")

LEARNING_RATE_RULES = (
    Rule(
        "learning_rate_too_high",
        learning_rate_too_high,
        "warning",
        advice("a_third_to_a_tenth_of_the_learning_rate", "warm_up_or_batch_norm"),
        ("loss", "update_ratio"),
        2,
    ),
    Rule("learning_rate_too_high", steps_too_large, "warning", _LOWER, ("update_ratio",), 20),
    Rule("learning_rate_too_high", weights_overwritten, "warning", _LOWER, ("loss", "weight_rms"), 5),
    Rule(
        "learning_rate_too_low",
        learning_rate_too_low,
        "warning",
        advice("higher_learning_rate"),
        ("loss", "update_ratio"),
        40,
    ),
)
