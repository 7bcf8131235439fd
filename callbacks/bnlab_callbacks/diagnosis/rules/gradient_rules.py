"""Rules about gradients and updates: those that do not reach a layer, or are too small to change it."""

import math

from bnlab_callbacks.diagnosis.findings import Severity, Verdict
from bnlab_callbacks.diagnosis.observations import History, Observation
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.rule import Rule
from bnlab_callbacks.diagnosis.rules.thresholds import SPREAD, VANISHED

_UNUSED_STEPS = 3
_CLIPPED = 100.0
_GROWING, _RECENT = 3.0, 10
_LATE = 300
_NOTHING = 1e-6  # a loss that is no more than this is 0 but for rounding


def vanishing(history: History) -> Verdict | None:
    """The first layer's ‖g‖/‖w‖ is below 1e-6, all layers' within a factor of 1e5, and the loss above half of chance.

    The first in order of execution, since gradients that vanish do so on their way back to it. In residual nets those
    of branches are small for a while where a gain (LayerScale, ReZero) or their last layer begins near 0, and the first
    layer's is not, or grows from step to step: above three times the largest of the first half of the last ten records
    is no verdict. A loss below 1 (small targets) has gradients as much smaller, so that they are compared with it.
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
    layer, low = next(iter(ratios.items()), ("", 0.0))
    loss = history.losses.smooth()
    bound = VANISHED if loss is None else VANISHED * min(1.0, abs(loss))
    if not 0 < low < bound or not history.unlearned():
        return None
    recent = [one.relative_gradients().get(layer, 0.0) for one in history.observations][-_RECENT:]
    if low > _GROWING * max(recent[: len(recent) // 2], default=low):
        return None
    top = max(ratios, key=lambda layer: ratios[layer])
    positive = [value for value in ratios.values() if value > 0]
    if (max(positive) / min(positive) > SPREAD) != with_depth:
        return None
    return Verdict(
        f"‖gradient‖/‖weights‖ is {low:.1e}, below {bound:.0e}; the largest, of {top}, is {ratios[top]:.1e}", layer
    )


def independent_loss(history: History) -> Verdict | None:
    """All layers' gradients are exactly 0, or there are none, for ten steps, and the loss is not 0.

    Every element of every layer: the loss does not depend on the net's weights, so that no step changes it. A softmax
    over a single output or over a batch of one, an output activation that is 0 everywhere, rounding, `argmax` or
    `detach` between the net and its loss. Where the loss is not known, it must have been so from the first step on: a
    loss that has reached 0 has no gradient either. Nets that begin with zeros alone are `poor_initialisation`; where a
    rectifier's outputs are all 0, see `zero_gradient` and `dead_units`.
    """
    layers, missing = history.facts.weights, history.facts.without_gradient
    if not layers or _mostly_zeros(history) or _silent(history):
        return None
    loss = history.losses.smooth()
    if loss is not None and not abs(loss) > _NOTHING:
        return None
    if history.losses.count >= _UNUSED_STEPS and len(missing) == len(layers):
        return Verdict(f"none of the {len(layers)} layers had a gradient in {history.losses.count} steps")
    seen = history.lately()
    if not seen or not all(map(_all_zero, [*seen, *([] if loss is not None else [history.first])])):
        return None
    return Verdict(f"the gradients of all {len(layers)} layers are exactly 0, while the loss is {_shown(loss)}")


def _shown(loss: float | None) -> str:
    return "not known" if loss is None else f"{loss:.3g}"


def _silent(history: History) -> bool:
    """Whether all outputs of a rectifier are 0."""
    return 1 in history.now.of("zero_frac").values()


def _all_zero(observation: Observation) -> bool:
    shares = observation.of("grad_zero_frac").values()
    return bool(shares) and all(share == 1 for share in shares)


def _mostly_zeros(history: History) -> bool:
    """Whether more than two thirds of the layers began as zeros."""
    zeros = sum(weight == 0 for weight in history.facts.constant.values())
    return zeros > 2 / 3 * len(history.facts.weights)


def no_gradient(history: History) -> Verdict | None:
    """Layers without a gradient in every step so far.

    A warning where the net's first layer is among them, and the loss stays near chance: the graph is cut between it and
    the loss. Else a note: the head alone may be trained on purpose, libraries' modules have branches that a task does
    not use (a pooler, an auxiliary head), and experts may get nothing.
    """
    missing = history.facts.without_gradient
    if not missing or history.losses.count < _UNUSED_STEPS or len(missing) == len(history.facts.weights):
        return None
    grave = missing[0] == next(iter(history.facts.weights), None) and history.stuck()
    return Verdict(
        f"{_these(missing)} had no gradient at all in {history.losses.count} steps",
        missing[0],
        None if grave else "note",
    )


def zero_gradient(history: History) -> Verdict | None:
    """Layers with a gradient of exactly 0, every element, for ten steps, while the loss is high.

    Embeddings of rare words and zero-initialised layers' neighbours have such ones for a step. As in `no_gradient`, a
    warning where the first layer is among them, else a note: an expert may get nothing for long.
    """
    seen = history.lately()
    shares = history.now.of("grad_zero_frac")
    zero = [layer for layer in shares if all(one.of("grad_zero_frac").get(layer) == 1 for one in seen)]
    everywhere = len(zero) == len(shares) and not _silent(history)  # `independent_loss`
    if not seen or not zero or everywhere or not history.unlearned():
        return None
    grave = zero[0] == next(iter(shares))
    return Verdict(f"the gradient of {_these(zero)} is exactly 0", zero[0], None if grave else "note")


def not_updated(history: History) -> Verdict | None:
    """Trainable layers that no optimizer holds, or whose weights did not move for twenty steps.

    A warning where the loss stays near chance; else a note, since a part may be left out of the optimizer on purpose.
    """
    outside = history.facts.without_optimizer
    if outside:
        severity: Severity = "warning" if history.stuck() else "note"
        return Verdict(f"no optimizer holds {_these(outside)}", outside[0], severity)
    still = [layer for layer, move in history.now.of("update_ratio").items() if move == -math.inf]
    gradients = history.now.of("grad_rms")
    still = [layer for layer in still if gradients.get(layer, 0.0) > 0 and layer not in history.facts.resting]
    if not still or not history.unlearned() or any(state.at_zero for state in history.facts.optimizers):
        return None
    return Verdict(f"the weights of {_these(still)} do not move, though there is a gradient", still[0])


def no_activation(history: History) -> Verdict | None:
    """Two linear layers with nothing between them, while the loss is above half of chance: both are one.

    Seen in the graph of the loss, where an activation function stands whether it is a module or not. Pairs whose middle
    is narrower than both ends are left out: matrices of low rank are made so. A note; from step 300 on a warning, where
    the loss is above nine tenths of chance.
    """
    pairs = history.facts.bare_pairs
    if not pairs or history.level() is None or not history.unlearned():
        return None
    severity: Severity = "warning" if history.now.step >= _LATE and history.unlearned(0.9) else "note"
    evidence = f"its outputs go into {pairs[0][1]} as they are: two linear layers in a row are one"
    return Verdict(evidence, pairs[0][0], severity)


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
    Rule(
        "independent_loss",
        independent_loss,
        "failing",
        advice("way_to_the_loss"),
        ("grad_rms",),
    ),
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
    Rule("no_activation", no_activation, "warning", advice("activation_between"), ("loss",), 50),
    Rule("clipping_too_tight", clipping_too_tight, "warning", advice("looser_clip"), ("grad_rms",), 20),
)
