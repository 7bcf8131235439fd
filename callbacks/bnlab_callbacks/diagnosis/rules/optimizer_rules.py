"""Rules about what an optimizer is given: parameters that are not the model's, and gradients that were not cleared."""

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.rule import Rule

_UNCLEARED = 3  # steps in a row
_FLAT = 0.9


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


def batch_of_one(history: History) -> Verdict | None:
    """Steps that are made of one sample each: a note, and a warning where the loss does not fall with them.

    From step 300 on: the mean of 100 losses is above 90 % of chance, and of what it was 200 steps before. Only of
    vectors: with pictures and series batches of one are usual, and their loss is a mean over many values.
    """
    if history.facts.samples != 1 or not history.facts.task.kind:
        return None
    now, before, level = history.losses.mean(100), history.losses.mean(100, before=200), history.level(100)
    stuck = now is not None and before is not None and level is not None and level > _FLAT and now > _FLAT * before
    return Verdict(
        "each step is made of one sample, and follows its noise" + (": the loss does not fall" if stuck else ""),
        severity="warning" if stuck else "note",
    )


OPTIMIZER_RULES = (
    Rule("not_updated", nothing_held, "failing", advice("all_parameters_to_the_optimizer", "optimizer_of_this_model")),
    Rule("gradients_not_cleared", gradients_not_cleared, "warning", advice("clear_gradients")),
    Rule("batch_of_one", batch_of_one, "note", advice("larger_batch"), patience=10),
)
