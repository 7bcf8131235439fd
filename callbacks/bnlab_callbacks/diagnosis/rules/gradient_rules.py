"""Rules about gradients and updates: those that do not reach a layer, or are too small to change it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bnlab_callbacks.diagnosis.findings import Advice, Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rule import Rule
from bnlab_callbacks.diagnosis.rules.thresholds import BETTER_INIT, SPREAD, VANISHED

_UNUSED_STEPS = 3
_CLIPPED = 100.0


def vanishing(history: History) -> Verdict | None:
    """A layer with ‖g‖/‖w‖ below 1e-6, all layers within a factor of 1e5, while the loss is above half of chance.

    Failing runs: 5e-8 at most from the first step on; healthy ones: 1.9e-4 and more after step 10.
    """
    ratios = history.now.relative_gradients()
    if not _vanished(history, ratios) or _spread(ratios) > SPREAD:
        return None
    layer, low = next((layer, value) for layer, value in ratios.items() if 0 < value < VANISHED)
    return Verdict(f"‖gradient‖/‖weights‖ is {low:.1e}, below {VANISHED:.0e}; {_spread_text(ratios)}", layer)


def vanishing_with_depth(history: History) -> Verdict | None:
    """The same, with more than 1e5 between the layers with the largest and the smallest gradient.

    A deep sigmoid net that cannot learn: 4e8; healthy nets: 870 at most.
    """
    ratios = history.now.relative_gradients()
    if not _vanished(history, ratios) or _spread(ratios) <= SPREAD:
        return None
    layer, low = next((layer, value) for layer, value in ratios.items() if 0 < value < VANISHED)
    return Verdict(f"‖gradient‖/‖weights‖ is {low:.1e}, below {VANISHED:.0e}; {_spread_text(ratios)}", layer)


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

    Clipping is for outliers: a clip that cuts every step to a hundredth is a learning rate in disguise.
    """
    clip, sizes = history.facts.gradient_clip, history.facts.weights
    rms = history.now.of("grad_rms")
    if not clip or not rms or not history.unlearned():
        return None
    norm = math.sqrt(sum(value**2 * sizes.get(layer, 0) for layer, value in rms.items()))
    if not norm > _CLIPPED * clip:
        return None
    return Verdict(f"the gradient's norm is {norm:.3g}, {norm / clip:.3g} times the clip of {clip:g}")


def _vanished(history: History, ratios: Mapping[str, float]) -> bool:
    return any(0 < value < VANISHED for value in ratios.values()) and history.unlearned()


def _spread(ratios: Mapping[str, float]) -> float:
    positive = [value for value in ratios.values() if value > 0]
    return max(positive) / min(positive)


def _spread_text(ratios: Mapping[str, float]) -> str:
    top = max(ratios, key=lambda layer: ratios[layer])
    return f"the largest, of {top}, is {ratios[top]:.1e}"


def _these(layers: list[str] | tuple[str, ...]) -> str:
    return layers[0] if len(layers) == 1 else f"{len(layers)} layers"


GRADIENT_RULES = (
    Rule(
        "vanishing",
        vanishing,
        "failing",
        (BETTER_INIT, Advice("larger_init", "larger initial weights")),
        ("weight_rms",),
        5,
    ),
    Rule(
        "vanishing_with_depth",
        vanishing_with_depth,
        "failing",
        (
            BETTER_INIT,
            Advice(
                "unsaturated_activation_or_skips",
                "an activation that does not saturate, such as ReLU, or skip connections",
            ),
        ),
        ("weight_rms",),
        5,
    ),
    Rule(
        "no_gradient",
        no_gradient,
        "warning",
        (
            Advice(
                "connect_to_the_loss",
                "use the layer's output in the loss, and look for detach(), .data, no_grad or argmax on the way",
            ),
        ),
        ("grad_rms",),
    ),
    Rule(
        "no_gradient",
        zero_gradient,
        "warning",
        (
            Advice("look_behind_the_layer", "look for dead units or zero weights in the layers behind it"),
            BETTER_INIT,
        ),
        ("grad_zero_frac",),
        10,
    ),
    Rule(
        "not_updated",
        not_updated,
        "warning",
        (
            Advice("all_parameters_to_the_optimizer", "give all of self.parameters() to the optimizer"),
            Advice("check_parameter_groups", "check the learning rates of its parameter groups"),
        ),
        ("update_ratio",),
        20,
    ),
    Rule("not_updated", frozen, "note", (Advice("unfreeze", "set requires_grad=True, if that is not meant"),)),
    Rule(
        "clipping_too_tight",
        clipping_too_tight,
        "warning",
        (Advice("looser_clip", "a clip near the usual norm of the gradient, with Trainer(gradient_clip_val=…)"),),
        ("grad_rms",),
        20,
    ),
)
