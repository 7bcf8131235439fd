"""Rules of a diagnosis that could not be checked in a run, and why."""

from collections.abc import Mapping, Sequence, Set

from bnlab_callbacks.diagnosis.findings import NOTHING_OF_THE_KIND
from bnlab_callbacks.diagnosis.rules.rule import Rule

_REASONS = {
    "loss": "no loss was seen: training_step returns none, and none was traced to its backward pass",
    "classes": "no classification whose outputs and targets can be seen",
    "chance": "the loss of guessing is unknown: no outputs that the loss compares with targets of the batch were seen",
    "task": "the loss compares no outputs with targets of the batch, as far as that was seen",
}


def unchecked(rules: Sequence[Rule], seen: Set[str], failures: Mapping[str, str | None]) -> dict[str, str]:
    """Names of rules → why they could not be checked, where no other rule of that name was that needs anything.

    Args:
        rules: all of them, to be gone through more than once.
        seen: quantities that were recorded at least once, and `loss`, `classes`.
        failures: what quantities begin with (`act_`) → why their monitor is off; None where it is not.
    """
    found: dict[str, str] = {}
    rules = list(rules)
    checked = {rule.name for rule in rules if not set(rule.needs) - seen}
    for rule in rules:
        if rule.name in checked or rule.name in found:
            continue  # what several rules find is checked by any of them
        if needs := sorted(set(rule.needs) - seen):
            known = [_REASONS[need] for need in needs if need in _REASONS]
            off = [why for prefix, why in failures.items() if why and any(need.startswith(prefix) for need in needs)]
            found[rule.name] = [*known, *off, NOTHING_OF_THE_KIND][0]
    checked = {rule.name for rule in rules if rule.needs and seen >= {*rule.needs}}
    return {name: why for name, why in found.items() if name not in checked}
