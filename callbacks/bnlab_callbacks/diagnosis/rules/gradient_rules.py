"""Rules about gradients and updates: those that do not reach a layer, or are too small to change it."""

from __future__ import annotations

import math

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rule import Rule
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.thresholds import SPREAD, VANISHED

_UNUSED_STEPS = 3
_CLIPPED = 100.0


def vanishing(history: History) -> Verdict | None:
    """A layer with ‖g‖/‖w‖ below 1e-6, all layers within a factor of 1e5, while the loss is above half of chance.

    Failing runs: 5e-8 at most from the first step on; healthy ones: 1.9e-4 and more after step 10.
    """
    return _vanished(history, with_depth=False)


def vanishing_with_depth(history: History) -> Verdict | None:
    """The same, with more than 1e5 between the layers with the largest and the smallest gradient.

    A deep sigmoid net that cannot learn: 4e8; healthy nets: 870 at most.
    """
    return _vanished(history, with_depth=True)


def _vanished(history: History, with_depth: bool) -> Verdict | None:
    ratios = history.now.relative_gradients()
    layer = next((layer for layer, value in ratios.items() if 0 < value < VANISHED), None)
    if layer is None or not history.unlearned():
        return None
    top = max(ratios, key=lambda layer: ratios[layer])
    positive = [value for value in ratios.values() if value > 0]
    if (max(positive) / min(positive) > SPREAD) != with_depth:
        return None
    low, high = ratios[layer], ratios[top]
    return Verdict(
        f"‖gradient‖/‖weights‖ is {low:.1e}, below {VANISHED:.0e}; the largest, of {top}, is {high:.1e}", layer
    )


def no_gradient(history: History) -> Verdict | None:
    """A layer without a gradient in every step so far, or with one that is exactly 0 while the loss is high.

    Exactly 0: every element. Embeddings of rare words, and zero-initialized layers' neighbours at the first step, are
    why it must last for ten steps. Without one at all: an unused branch, or a graph cut by `detach`.
    """
    missing = history.facts.without_gradient
    if missing and history.losses.count >= _UNUSED_STEPS:
        return Verdict(f"{_these(missing)} had no gradient at all in {history.losses.count} steps", missing[0])
    return None


def zero_gradient(history: History) -> Verdict | None:
    """See `no_gradient`."""
    zero = [layer for layer, share in history.now.of("grad_zero_frac").items() if share == 1]
    if not zero or not history.unlearned():
        return None
    return Verdict(f"the gradient of {_these(zero)} is exactly 0", zero[0])


def not_updated(history: History) -> Verdict | None:
    """A trainable layer that no optimizer holds, or whose weights did not move for twenty steps."""
    outside = history.facts.without_optimizer
    if outside:
        return Verdict(f"no optimizer holds {_these(outside)}", outside[0])
    still = [layer for layer, move in history.now.of("update_ratio").items() if move == -math.inf]
    gradients = history.now.of("grad_rms")
    still = [layer for layer in still if gradients.get(layer, 0.0) > 0]
    if not still or not history.unlearned():
        return None
    return Verdict(f"the weights of {_these(still)} do not move, though there is a gradient", still[0])


def frozen(history: History) -> Verdict | None:
    """Layers with `requires_grad=False`: on purpose in transfer learning, so only a note."""
    layers = history.facts.frozen
    return Verdict(f"{_these(layers)} {'are' if len(layers) > 1 else 'is'} frozen", layers[0]) if layers else None


def clipping_too_tight(history: History) -> Verdict | None:
    """The gradient's norm (of the watched weights) is more than 100 times what the Trainer clips it to.

    Clipped by value, its root mean square is. Clipping is for outliers: a clip that cuts every step to a hundredth is a
    learning rate in disguise.
    """
    facts, rms = history.facts, history.now.of("grad_rms")
    counts = {layer: facts.weights.get(layer, 0) for layer in rms}
    clip, elements = facts.gradient_clip or facts.clip_value, sum(counts.values())
    if not clip or not elements or not history.unlearned():
        return None
    size = math.sqrt(sum(value**2 * counts[layer] for layer, value in rms.items()))
    what = "the gradient's norm"
    if not facts.gradient_clip:
        size, what = size / math.sqrt(elements), "the root mean square of the gradient"
    if not size > _CLIPPED * clip:
        return None
    return Verdict(f"{what} is {size:.3g}, {size / clip:.3g} times the clip of {clip:g}")


def _these(layers: list[str] | tuple[str, ...]) -> str:
    return layers[0] if len(layers) == 1 else f"{len(layers)} layers"


GRADIENT_RULES = (
    Rule("vanishing", vanishing, "failing", advice("better_init", "larger_init"), ("weight_rms",), 5),
    Rule(
        "vanishing_with_depth",
        vanishing_with_depth,
        "failing",
        advice("better_init", "unsaturated_activation_or_skips"),
        ("weight_rms",),
        5,
    ),
    Rule("no_gradient", no_gradient, "warning", advice("connect_to_the_loss"), ("grad_rms",)),
    Rule(
        "no_gradient",
        zero_gradient,
        "warning",
        advice("look_behind_the_layer", "better_init"),
        ("grad_zero_frac",),
        10,
    ),
    Rule(
        "not_updated",
        not_updated,
        "warning",
        advice("all_parameters_to_the_optimizer", "check_parameter_groups"),
        ("update_ratio",),
        20,
    ),
    Rule("not_updated", frozen, "note", advice("unfreeze")),
    Rule("clipping_too_tight", clipping_too_tight, "warning", advice("looser_clip"), ("grad_rms",), 20),
)
