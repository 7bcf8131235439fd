"""Rules about signals: inputs, outputs of activation functions, and outputs of the net."""

import math
from collections.abc import Callable, Iterable
from itertools import takewhile

from bnlab_callbacks.diagnosis.findings import Severity, Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.rule import Rule
from bnlab_callbacks.diagnosis.rules.thresholds import COLLAPSED, standardised

_DEAD, _DEAD_WARNING, _DEAD_FROM, _STUCK_FROM = 0.5, 0.8, 20, 100
_SATURATED, _OTHER_SIDE = 0.8, 0.05
_SHRINKS, _GROWS = 1e3, 30.0
_APART = 1.5
_TRIED = 5


def dead_units(history: History) -> Verdict | None:
    """More than half of a rectifier layer's units silent over ten records, from step 20 on.

    A note: such nets can still learn, and deep vanilla nets that start slowly have up to .77. From .8 on a warning, if
    the loss stays near chance at step 100 or later (some come back before), and failing where a whole layer is silent,
    and the loss is at chance or no layer has a gradient. Failing runs at lr 0.1: .83 to .96.
    """
    shares = history.now.of("dead_frac")
    layers = [layer for layer, share in shares.items() if share > _DEAD]
    if not layers or history.now.step < _DEAD_FROM:
        return None
    layer = next((name for name in layers if shares[name] > _DEAD_WARNING), layers[0])
    share = shares[layer]
    silent = [name for name in layers if shares[name] == 1]
    gradients = history.now.of("grad_zero_frac").values()
    if silent and (history.unlearned(0.9) or (gradients and min(gradients) == 1)):
        return Verdict("no unit of the layer is ever positive, so no gradient passes", silent[0], "failing")
    stuck = history.now.step >= _STUCK_FROM and history.stuck()
    severity: Severity = "warning" if share > _DEAD_WARNING and stuck else "note"
    samples = history.now.of("dead_samples").get(layer, 0)
    return Verdict(
        f"{share:.0%} of its units were not once positive over {samples:.0f} samples (above {_DEAD:.0%})",
        layer,
        severity,
    )


def saturated(history: History) -> Verdict | None:
    """More than 80 % of a two-sided function's outputs where its slope is below 5 %, while the loss stays near chance.

    Large weights drive outputs to both sides, or training drives them to one. What was at one side alone from the first
    step on is there by its bias, on purpose: a gate that begins shut or open, an output that begins at the share of a
    rare class. One side alone is less than a twentieth of the saturated outputs on the other. Outputs that are
    multiplied with something (gates, soft caps, attention scores, position biases) are meant to be at the ends, and are
    left out.
    """
    shares, high = history.now.of("sat_frac"), history.now.of("sat_hi")
    first, first_high = history.first.of("sat_frac"), history.first.of("sat_hi")

    def one_sided(layer: str) -> bool:
        share = first.get(layer, 0.0)
        other = min(first_high.get(layer, 0.0), share - first_high.get(layer, 0.0))
        return share > _SATURATED / 2 and other < _OTHER_SIDE * share

    layers = [layer for layer, share in shares.items() if layer in high and share > _SATURATED]
    layers = [layer for layer in layers if layer not in history.facts.gates and not one_sided(layer)]
    if not layers or not history.stuck():
        return None
    return Verdict(f"{shares[layers[0]]:.0%} of its outputs are saturated (above {_SATURATED:.0%})", layers[0])


def collapsed_output(history: History) -> Verdict | None:
    """Outputs that differ by less than 1e-3 (standard deviation) between the inputs of a batch, for twenty steps.

    Where they are to be like targets, less than 1e-3 of the targets' own. Only where the task is known, the loss near
    that of guessing, and the outputs do not grow apart (1.5-fold in ten looks), as those of a last layer that begins at
    zero do; nor where they explain something, as a language model's do that learns how frequent words are before it
    looks at any. Failing runs with weights of N(0, 1e-4²): 1e-8.
    """
    seen = history.now.globals
    spread, size = seen.get("output_std"), seen.get("target_std", 1.0)
    known = history.facts.task.kind or history.facts.chance_loss is not None
    if spread is None or not known or not spread < COLLAPSED * size or not history.unlearned():
        return None
    before = [seen.globals["output_std"] for seen in history.observations if "output_std" in seen.globals][-10:]
    if spread > _APART * before[0] or history.explains():
        return None
    share = "" if size == 1.0 else f", and targets by {size:.1e}"
    return Verdict(f"the outputs for different inputs differ by {spread:.1e} (standard deviation){share}")


def poor_initialisation(history: History) -> Verdict | None:
    """At the first step, outputs have shrunk by more than 1e3 or grown by more than 30 from a layer on to the last one.

    Weights that keep the size of the signal (Glorot & Bengio 2010; He et al. 2015) give a factor near 1. Measured: 0.03
    (batch norm, N(0, 1e-4²)) to 2.8 in nets that train, 24 in the thesis's CNN with dropout; wrong ones have 7 for each
    layer of 100 units (N(0, 1)) or a thousandth (N(0, 1e-4²)).

    Such a size lasts to the net's end: what is small or large for itself, such as a gate, a branch that begins at 0 or
    the features of a condition, is no part of the chain that theory is about. Nor is anything said of nets with norms,
    which give signals a size of their own, or once the loss has halved.
    """
    if "norm" in history.facts.has or not history.unlearned():
        return None
    sizes = {
        layer: math.hypot(value, history.first.of("act_mean").get(layer, 0.0))
        for layer, value in history.first.of("act_std").items()
    }
    bounded = history.first.of("sat_hi")  # of sigmoid and tanh, which tell nothing of how large what comes in is
    first = next(iter(sizes.values()), 0.0)
    shrunk = _from_there_on(sizes, lambda layer: 0 < sizes[layer] < first / _SHRINKS)
    grown = _from_there_on(sizes, lambda layer: layer in bounded or sizes[layer] > _GROWS * first)
    layer = next((layer for layer in shrunk or grown if shrunk or layer not in bounded), None)
    if layer is None or not first > 0:
        return None
    return Verdict(
        f"at the first step its outputs are {sizes[layer] / first:.1e} times those of {next(iter(sizes))}", layer
    )


def _from_there_on(layers: Iterable[str], condition: Callable[[str], bool]) -> list[str]:
    """The layers at the end, in order, that all meet a condition."""
    return [*takewhile(condition, reversed(list(layers)))][::-1]


def inputs_not_standardised(history: History) -> Verdict | None:
    """What the first layer with weights gets has a standard deviation outside 0.05 … 20, or a mean of five of them.

    Not zeros and ones (one-hot), nor sound. From step 5 on, and only while the loss is above 90 % of chance: nets that
    bring it down have no harm of their inputs.
    """
    batch = history.first.globals
    if "input_std" not in batch or batch.get("input_unscaled") or history.now.step < _TRIED:
        return None
    mean, std = batch["input_mean"], batch["input_std"]
    if standardised(mean, std) or not history.unlearned(0.9):
        return None
    return Verdict(
        f"the net's first inputs have mean {mean:.3g} and standard deviation {std:.3g}, far from 0 and 1",
        since=history.first.step,
    )


ACTIVATION_RULES = (
    Rule(
        "dead_units",
        dead_units,
        "warning",
        advice("lower_learning_rate_or_batch_norm", "leaky_activation"),
        ("dead_frac",),
        3,
    ),
    Rule("saturated", saturated, "warning", advice("better_init", "lower_learning_rate"), ("sat_frac",), 5),
    Rule("collapsed_output", collapsed_output, "failing", advice("better_init"), ("output_std", "task"), 20),
    Rule("poor_initialisation", poor_initialisation, "warning", advice("better_init"), ("act_std",)),
    Rule("inputs_not_standardised", inputs_not_standardised, "warning", advice("standardise"), ("input_std",)),
)
