"""Rules about what the loss compares: outputs, targets, and what a constant output would do.

Ranges in the docstrings: programs from forums and papers' benchmarks with one of these faults, and their repaired
versions, three seeds each.
"""

from statistics import fmean

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.rule import Rule

_FROM, _NOTHING, _SOMETHING = 300, 0.02, 0.3
_FALLS = 0.95
_OUTSIDE, _MOST = 0.05, 0.5
_LABELS, _FEW_CLASSES = 512, 2048
_NOT_BINARY, _NOT_NORMALISED = 1e-3, 0.05
_ZEROS = 20


def explains_nothing(history: History) -> Verdict | None:
    """From step 300 on: outputs explain less than 2 % of the targets' variance, on average over three looks.

    Not while the loss falls by 5 % in 100 steps: numbers far from 0 take their time. What learns its batches by heart
    after that has learned nothing before 30 %.
    """
    looks = [(seen.step, seen.globals["explained"]) for seen in history.observations if "explained" in seen.globals]
    if not history.facts.task.of_numbers or not looks or history.now.step < _FROM:
        return None
    means = [
        fmean(share for _, share in looks[at - 2 : at + 1]) for at in range(2, len(looks)) if looks[at][0] >= _FROM
    ]
    now, before = history.losses.mean(50), history.losses.mean(50, before=100)
    if not means or not min(means) < _NOTHING or not means[-1] < _SOMETHING:
        return None
    if now is None or before is None or now < _FALLS * before:
        return None
    if (history.recent("r_squared", 5) or 0.0) > _SOMETHING / 3:  # targets with long tails
        return None
    share = f"{max(means[-1], 0.0):.0%}"
    return Verdict(
        f"the outputs explain {share} of the targets' variance (mean of three looks): a constant does as well"
    )


def unreachable_targets(history: History) -> Verdict | None:
    """More than 5 % of the targets lie where the function that makes the outputs cannot go; failing from a half on.

    The range has 5 % of slack on both sides. Faults: 48 % (ReLU, targets around 0) to all of them (a sigmoid, targets
    to 80). A softmax over one unit gives 1, whatever it gets.
    """
    task = history.facts.task
    if task.output_function == "softmax of one":
        return Verdict(
            "the outputs are a softmax over one unit, which is always 1: the loss does not depend on the net"
        )
    if task.output_function == "softmax of the batch":
        return Verdict(
            "the outputs are a softmax over the samples of the batch, not over the classes", severity="warning"
        )
    share = history.now.globals.get("outside", 0.0)
    if not task.output_function or not share > _OUTSIDE:
        return None
    return Verdict(
        f"{share:.0%} of the targets ({task.label_low:.3g} to {task.label_high:.3g}) lie outside of what outputs "
        f"can reach: they come from {task.output_function}, {task.low:g} to {task.high:g}",
        severity="failing" if share >= _MOST else "warning",
    )


def broadcast_loss(history: History) -> Verdict | None:
    """Each output is compared with each target: (N, 1) against (N,), whose difference is (N, N)."""
    if not history.facts.task.broadcast:
        return None
    return Verdict("outputs (N, 1) and targets (N,) are broadcast to (N, N): the net can learn only the targets' mean")


def labels_all_equal(history: History) -> Verdict | None:
    """At least 512 targets so far, and all the same; 2048 where there are two classes, of which one may be rare."""
    task = history.facts.task
    least = _FEW_CLASSES if task.classes == 2 else _LABELS
    if not task.kind or task.label_count < least or task.labels_differ:
        return None
    return Verdict(f"all {task.label_count:.0f} targets so far are {task.label_low:g}: there is nothing to learn")


def targets_not_binary(history: History) -> Verdict | None:
    """Binary cross entropy of targets outside of 0 to 1: it has no least value."""
    task = history.facts.task
    if task.name != "binary" or (task.label_low >= -_NOT_BINARY and task.label_high <= 1 + _NOT_BINARY):
        return None
    return Verdict(
        f"targets go from {task.label_low:g} to {task.label_high:g} and binary cross entropy needs 0 to 1: it falls "
        "below 0 without end"
    )


def not_log_probabilities(history: History) -> Verdict | None:
    """F.nll_loss of outputs that are no log probabilities: |ln Σ exp| above 0.05 in the median sample."""
    off = history.facts.task.not_normalised
    if not off > _NOT_NORMALISED:
        return None
    return Verdict(f"F.nll_loss gets no log probabilities (|ln Σ exp| is {off:.2g}, not 0): it falls without end")


def negated_loss(history: History) -> Verdict | None:
    """The loss is the negative of an error, or of a cross entropy, exactly: the smaller it is, the worse the net."""
    if not history.facts.task.negated:
        return None
    kind = history.facts.task.name.replace("_", " ")
    return Verdict(f"the loss is the negative of a {kind} loss: training makes that large")


def zero_loss(history: History) -> Verdict | None:
    """Exactly 0 in each of the first twenty steps and since."""
    losses = history.losses
    if losses.count < _ZEROS or losses.first != 0 or losses.streak(lambda loss: loss == 0) < len(losses.recent):
        return None
    return Verdict(f"the loss has been exactly 0 in all {losses.count} steps", since=history.first.step)


TASK_RULES = (
    Rule(
        "unreachable_targets",
        unreachable_targets,
        "failing",
        advice("reachable_targets", "sigmoid_instead"),
        ("task",),
        3,
    ),
    Rule("broadcast_loss", broadcast_loss, "failing", advice("same_shapes"), ("task",), 3),
    Rule("labels_all_equal", labels_all_equal, "warning", advice("check_labels"), ("task",)),
    Rule("targets_not_binary", targets_not_binary, "failing", advice("one_output_a_class"), ("task",), 3),
    Rule("not_log_probabilities", not_log_probabilities, "failing", advice("log_probabilities"), ("task",), 3),
    Rule("negated_loss", negated_loss, "failing", advice("minimise"), ("task",), 5),
    Rule("zero_loss", zero_loss, "failing", advice("check_labels", "sigmoid_instead"), ("loss",)),
    Rule("not_learning", explains_nothing, "warning", advice("check_labels", "another_learning_rate"), ("explained",)),
)
