"""Rules about the weights that a run began with; `activation_rules` has the one about what they do to signals."""

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.rule import Rule

_ALL_BUT = 2 / 3
_GAIN, _FIRST_LOSS, _TREBLED = 3.0, 1.2, 3.0


def constant_weights(history: History) -> Verdict | None:
    """A layer whose weights were all equal at the start, so that its units stay copies of each other.

    Zeros count only if the layer's own gradient is 0 as well, for ten steps, while the loss is above half of chance: a
    zero-initialised last layer, or one that ends a residual branch, gets gradients and leaves 0, and then so do those
    before it.
    """
    seen = history.lately()
    for layer, weight in history.facts.constant.items():
        if weight != 0:
            return Verdict(f"all its weights began as {weight:g}, so that its units are copies of each other", layer)
        still = [one.of("grad_zero_frac").get(layer) == 1 and one.of("weight_rms").get(layer) == 0 for one in seen]
        if still and all(still) and history.unlearned():
            return Verdict("all its weights are 0, and so are their gradients", layer)
    return None


def zero_weights(history: History) -> Verdict | None:
    """More than two thirds of the layers began as zeros, of two layers at least, and the loss is above half of chance.

    Some zeros are a choice: the last layer, the ends of residual branches, one of the two matrices of each LoRA pair.
    With nearly all of them nothing comes in and no gradient comes back, until biases and norms have moved. A single
    layer of zeros is convex, and well begun. Measured: all or none.
    """
    zeros = [layer for layer, weight in history.facts.constant.items() if weight == 0]
    layers = len(history.facts.weights)
    if layers < 2 or not len(zeros) > _ALL_BUT * layers or not history.unlearned():
        return None
    return Verdict(f"{len(zeros)} of {layers} layers began with weights that are all 0", zeros[0])


def large_weights(history: History) -> Verdict | None:
    """A layer that began 3 times as large as weights that keep the size of the signal, and a first loss above chance.

    Size is root mean square times √(inputs or outputs, whichever are fewer): at most 1.7 in usual initializations (He,
    Glorot, LeCun, orthogonal, PyTorch's). The largest of a net's layers: 1.5 at most in the fault matrix's healthy
    nets, 5.7 to 17 with N(0, 1), and 3.9 in its ResNet, where norms follow all but the skip connections. A first loss
    of 1.2 times chance is needed as well: what was trained before begins low, whatever its size (healthy nets begin at
    up to 1.9 times, N(0, 1) where it fails at 1.4 and more).
    A note, since such nets may train, if slowly; a warning where the loss has trebled, or stays near chance.
    Only while the loss is above half of chance, and not for layers that a norm follows (its scale drops out; the fault
    matrix's batch-normalized nets train with N(0, 1)), nor for the last layer, whose size the loss shows.
    """
    chance, first = history.facts.chance_loss, history.losses.first
    gains = history.initial_gains() if history.facts.task.name in ("", "cross_entropy") else {}
    if not gains or chance is None or first is None or not first > _FIRST_LOSS * chance or not history.unlearned():
        return None
    last = list(history.first.of("weight_rms"))[-1]
    for layer, gain in gains.items():
        if gain > _GAIN and layer != last and layer not in history.facts.rescaled:
            return Verdict(
                f"its weights began {gain:.2g} times as large as those that keep a signal's size (above {_GAIN:g}), "
                f"and the loss at {first / chance:.2g} times that of guessing",
                layer,
                "warning" if history.stuck() or (history.losses.last or 0.0) > _TREBLED * first else "note",
            )
    return None


INITIAL_WEIGHT_RULES = (
    Rule("poor_initialisation", constant_weights, "warning", advice("random_weights"), ("grad_rms",), 3),
    Rule("poor_initialisation", zero_weights, "warning", advice("random_weights")),
    Rule("poor_initialisation", large_weights, "warning", advice("better_init"), ("weight_rms", "classes")),
)
