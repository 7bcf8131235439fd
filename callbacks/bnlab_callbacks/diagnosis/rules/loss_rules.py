"""Rules about the loss: one that is no number, that grows, or that does not fall.

Ranges in the docstrings: the thesis's nets on MNIST and CIFAR-10, three seeds, 11 failing and 19 training runs.
"""

import math
from collections.abc import Callable

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.rule import Rule
from bnlab_callbacks.diagnosis.rules.thresholds import INITIAL_LOSS
from bnlab_callbacks.statistics.losses import not_finite

_EXPLODED = 10.0  # × the loss of guessing
_WORSE = -1.0  # share of the targets' variance that is explained: twice the error of guessing
_SMALL = 1e6  # outputs whose squares and exponentials are finite
_STUCK_FROM, _STUCK_LEVEL, _STUCK_FALL = 300, 0.97, 0.99
# tasks whose losses may begin far above chance → how many times it is too much, and what is left after 100 steps
_ABOVE = {"binary": (1.05, 0.9), "squared": (2.0, 0.5), "absolute": (2.0, 0.5)}
_BALANCED, _A_LITTLE = 0.9, 0.1


def non_finite(history: History) -> Verdict | None:
    """A loss, a gradient or an output that is NaN or infinite, tested explicitly: comparisons with NaN are false.

    The layer is the first whose outputs are not finite; where all are, the last whose gradient is not, since gradients
    come from there. With a loss scaler gradients alone do not count (`loss_scale_overflow`).
    """
    now, losses = history.now, history.losses
    outputs = [layer for layer, value in now.of("act_absmax").items() if not math.isfinite(value)]
    gradients = [layer for layer, value in now.of("grad_nonfinite").items() if value > 0]
    bad_loss = losses.last is not None and not_finite(losses.last)
    if not bad_loss and not outputs and (history.facts.scaled or not gradients):
        return None
    if non_finite_formula(history) is not None:
        return None
    what = [f"the loss is {losses.last}"] if bad_loss else []
    if now.bad_rank:
        what[-1:] = [f"the loss is not finite, first on rank {now.bad_rank}"]
    if outputs:
        what.append(f"outputs of {len(outputs)} layers are not finite")
    if gradients:
        what.append(f"gradients of {len(gradients)} layers are not finite")
    layer = outputs[0] if outputs else gradients[-1] if gradients else None
    since = _began(history, not_finite) if bad_loss else None
    return Verdict(", ".join(what) + _moved_before(history), layer, since=since)


def non_finite_formula(history: History) -> Verdict | None:
    """A loss that is not finite though the outputs that it is made of are, and below 1e6: a logarithm or a division."""
    if history.losses.last is None or not not_finite(history.losses.last):
        return None
    began = _began(history, not_finite)
    then = next((seen for seen in history.observations if seen.step == began), None)
    largest = math.inf if then is None else then.globals.get("last_absmax", math.inf)
    if then is None or not largest < _SMALL or not all(map(math.isfinite, then.of("act_absmax").values())):
        return None
    return Verdict(
        f"the loss is {history.losses.last}, though the last layer's outputs were finite (at most {largest:.2g}): it "
        "comes from how the loss is computed",
        since=began,
    )


def exploding(history: History) -> Verdict | None:
    """Loss above 10 times where it began, and above 10 times that of guessing.

    Not for an error that one batch brings whose targets lie far out: below 10 times that again, and either the first
    such loss, or of outputs that are no worse than twice a guess for that batch. Failing runs pass it within 5 steps
    (1e4 to 1e18); healthy ones stay below 2.1 times. A classification that begins above 50 times (healthy: 11 times at
    most) gets a warning: after unscaled inputs some nets recover.
    """
    scale, last = history.scale(), history.losses.last
    if scale is None or last is None or not math.isfinite(last):
        return None
    chance, task = history.facts.chance_loss, history.facts.task
    numbers = task.of_numbers
    if last > _EXPLODED * scale and not (numbers and _single(history, _EXPLODED * scale)):
        evidence = f"the loss is {last:.3g}, above {_EXPLODED:g} times the first losses"
        since = _began(history, lambda loss: loss > _EXPLODED * scale)
        return Verdict(evidence + _moved_before(history), grown_most(history), since=since)
    if chance is not None and last > INITIAL_LOSS * chance and not numbers and (task.labels_differ or not task.name):
        evidence = f"the loss is {last:.3g}, above {INITIAL_LOSS:g} times that of guessing, {chance:.3g}"
        return Verdict(evidence, grown_most(history), "warning")
    return None


def _single(history: History, limit: float) -> bool:
    """Whether a large error may be that of a single batch."""
    last = history.losses.recent[-1]
    known = history.now.globals.get("r_squared", -math.inf) > _WORSE
    return last < _EXPLODED * limit and (known or history.losses.streak(lambda loss: loss > limit) == 1)


def not_learning(history: History) -> Verdict | None:
    """From step 300: the loss over 50 steps above 97 % of chance, and above it, or not 1 % lower than 100 steps before.

    A loss that is still above chance has learned nothing of its inputs, though it may fall: shuffled labels with batch
    norm, 2.55 at step 50, 2.39 at 350, where chance is 2.30. Other losses may begin far above it: an error must be
    twice that of guessing and not halve in 100 steps, a binary cross entropy 5 % above and not fall by a tenth. Nets
    that start slowly look the same for some hundred steps (a vanilla sigmoid MLP, a deep vanilla CNN), so this is a
    warning. Where some classes are rare (a guess has less than 90 % of ln C), little can be gained on it: there the
    loss must be above. Errors of targets with long tails say little, so that batches of which a tenth of the variance
    is explained are something.
    """
    now, before = history.losses.mean(50), history.losses.mean(50, before=100)
    chance, task = history.facts.chance_loss, history.facts.task
    if history.losses.count < _STUCK_FROM or now is None or before is None or not chance:
        return None
    level, fall = _ABOVE.get(task.name, (1.0, 0.0))
    above = now > level * chance and now > fall * before
    if not (now > _STUCK_LEVEL * chance and (above or now > _STUCK_FALL * before)):
        return None
    rare = task.name == "binary" or (task.classes > 1 and chance < _BALANCED * math.log(task.classes))
    if rare and (now < chance or (history.recent("explained", 5) or 0.0) > 0):
        return None
    if task.of_numbers and (history.recent("r_squared", 5) or 0.0) > _A_LITTLE:
        return None
    return Verdict(f"the mean loss of 50 steps is {now:.4g}, {before:.4g} 100 steps ago; {chance:.4g} is a guess")


def doubled_softmax(history: History) -> Verdict | None:
    """All outputs so far that a loss took for logits were probabilities: sums of 1 (to 0.1 %), or from a sigmoid."""
    if not history.facts.softmax_twice:
        return None
    if history.facts.task.name == "binary":
        return Verdict("the outputs have been through a sigmoid, and the loss takes it again; it cannot fall to 0")
    return Verdict("the loss equals the cross entropy of probabilities, not of logits; it cannot fall to 0")


def loss_scale_overflow(history: History) -> Verdict | None:
    """Gradients that overflow under a loss scaler in five recorded steps in a row; single ones are normal."""
    bad = [layer for layer, value in history.now.of("grad_nonfinite").items() if value > 0]
    if not history.facts.scaled or not bad:
        return None
    return Verdict(f"scaled gradients of {len(bad)} layers overflow: the optimizer makes no step", bad[-1])


def grown_most(history: History) -> str | None:
    """The first layer in order of execution whose outputs or gradients grew by a tenth of the largest growth or more.

    Outputs first: an explosion of the outputs brings that of the gradients. None where nothing has grown threefold, as
    at the first step.
    """
    for quantity in ("act_absmax", "grad_rms"):
        now, first = history.now.of(quantity), history.first.of(quantity)
        growth = {layer: now[layer] / first[layer] for layer in now if first.get(layer)}
        largest = max(growth.values(), default=0.0)
        if largest > 3:
            return next(layer for layer, value in growth.items() if value >= largest / 10)
    return None


def _began(history: History, condition: Callable[[float], bool]) -> int:
    """The step at which losses began to meet a condition.

    Losses are known of all steps as a rule; where they are of recorded ones alone, it is the present one.
    """
    if history.losses.count <= history.now.step:
        return history.now.step
    return history.now.step - max(history.losses.streak(condition) - 1, 0)


def _moved_before(history: History) -> str:
    """The layer with the largest update in the recorded step before, in words."""
    if len(history.observations) < 2:
        return ""
    before = history.observations[-2]
    moves = {k: v for k, v in before.of("update_ratio").items() if math.isfinite(v)}
    if not moves:
        return ""
    layer = max(moves, key=lambda name: moves[name])
    return f"; before it, at step {before.step}, {layer} had moved by {min(10 ** moves[layer], 1e9):.2g} of its weights"


LOSS_RULES = (
    Rule("non_finite", non_finite, "failing", advice("lower_learning_rate_or_clip", "check_for_nan")),
    Rule("non_finite", non_finite_formula, "failing", advice("check_formula", "check_for_nan"), ("loss",)),
    Rule(
        "exploding",
        exploding,
        "failing",
        advice("a_tenth_of_the_learning_rate_or_better_init", "batch_norm"),
        ("loss",),
    ),
    Rule("not_learning", not_learning, "warning", advice("check_labels", "another_learning_rate"), ("loss", "chance")),
    Rule("doubled_softmax", doubled_softmax, "warning", advice("logits"), ("loss", "classes")),
    Rule(
        "loss_scale_overflow",
        loss_scale_overflow,
        "warning",
        advice("bf16", "lower_loss_scale"),
        ("grad_nonfinite",),
        5,
    ),
)
