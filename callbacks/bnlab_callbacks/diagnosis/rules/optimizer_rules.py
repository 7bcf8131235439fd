"""Rules about what an optimizer is given: parameters that are not the model's, and gradients that were not cleared."""

from __future__ import annotations

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rule import Rule
from bnlab_callbacks.diagnosis.rules.advice import advice

_UNCLEARED = 3  # steps in a row


def nothing_held(history: History) -> Verdict | None:
    """No optimizer holds any of the model's trainable parameters, though they get gradients, and none of them changes.

    What optimizers do hold is frozen, or another module's: a copy that was made before or after. Parameters that
    somebody changes all the same are trained by an optimizer that is not to be seen.
    """
    seen = history.facts.coverage
    if seen is None or seen.held or not seen.trainable or seen.moved or not seen.reached:
        return None
    parts = [f"{n:,} {what}" for n, what in ((seen.frozen, "frozen ones"), (seen.foreign, "of no part of it")) if n]
    held = f"; what it holds are {' and '.join(parts)}" if parts else ""
    return Verdict(f"no optimizer holds any of the model's {seen.trainable:,} trainable weights{held}")


def gradients_not_cleared(history: History) -> Verdict | None:
    """Three steps in a row and more were made with gradients that still held those of the step before.

    They grow as sums: a step follows all batches so far. Seen by where gradients lie and how often they were changed in
    place, not by their values, so that no healthy run comes near.
    """
    steps = max((state.uncleared for state in history.facts.optimizers), default=0)
    if steps < _UNCLEARED:
        return None
    return Verdict(
        f"no gradient was cleared before the last {steps} steps that were looked at: each is made of the sum of all "
        "gradients so far"
    )


OPTIMIZER_RULES = (
    Rule("not_updated", nothing_held, "failing", advice("all_parameters_to_the_optimizer", "optimizer_of_this_model")),
    Rule("gradients_not_cleared", gradients_not_cleared, "warning", advice("clear_gradients")),
)
