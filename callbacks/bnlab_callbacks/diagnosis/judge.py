"""The judge of a run: what its rules make of the observations, step by step."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bnlab_callbacks.diagnosis.findings import Advise, Finding
from bnlab_callbacks.diagnosis.latch import Announcer, Latch, in_order
from bnlab_callbacks.diagnosis.observations import EarlyChanges, Facts, History, Losses, MedianUpdates, Observation
from bnlab_callbacks.diagnosis.rule import Rule
from bnlab_callbacks.diagnosis.rules.catalogue import RULES
from bnlab_callbacks.diagnosis.rules.unchecked import unchecked

_KEPT = 64  # observations that rules may look back on


def chosen_rules(without: Sequence[str] = (), own: Sequence[Rule] = ()) -> tuple[Rule, ...]:
    """All rules and one's own, but for some names.

    Raises:
        ValueError: there is no rule of a name in `without`.
    """
    known = {rule.name for rule in (*RULES, *own)}
    for name in without:
        if name not in known:
            raise ValueError(f"without={name!r}: there is no such rule; there are {', '.join(sorted(known))}.")
    return tuple(rule for rule in (*RULES, *own) if rule.name not in without)


class Judge:
    """Follows a run through its observations and losses.

    Attributes:
        facts: what is known of the run beside them.
        losses: of all steps so far.
        observations: the last ones.

    Args:
        rules: to be checked.
        chance_loss: the loss of a net that knows nothing, where the user gave it.
        advise: gives the text of an advice.
        say: is given each line that is to be said while the run goes on.
    """

    def __init__(
        self, rules: Sequence[Rule], chance_loss: float | None, advise: Advise | None, say: Callable[[str], None]
    ) -> None:
        self.facts = Facts(chance_loss=chance_loss)
        self.losses = Losses()
        self.observations: deque[Observation] = deque(maxlen=_KEPT)
        self.median_updates = MedianUpdates()
        self.early_changes = EarlyChanges()
        self.first: Observation | None = None
        self._rules = rules
        self._chance_loss = chance_loss
        self._say = say
        self._latches = [Latch(rule.advised(advise)) for rule in rules]
        self._announcer = Announcer()
        self._seen: set[str] = set()

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, the gravest first."""
        return in_order(self._latches)

    def not_checked(self, failures: Mapping[str, str | None]) -> dict[str, str]:
        """Rules that could not be checked → why; `failures` say what was not recorded."""
        return unchecked(self._rules, self._seen, failures)

    def know(self, facts: Facts, resumed: bool) -> None:
        """Take in what is known of the net when training begins or goes on."""
        known, self.facts = self.facts, facts
        self.know_task(known.chance_loss, known.softmax_twice)
        if resumed:
            self.facts.constant = known.constant

    def know_task(self, chance_loss: float | None, softmax_twice: bool) -> None:
        """Take in what the first batch tells of the task; a loss that the user gave is not changed by it."""
        self.facts.chance_loss = self._chance_loss or chance_loss
        self.facts.softmax_twice = softmax_twice

    def judge(
        self,
        losses: Mapping[int, float],
        observations: Mapping[int, Observation],
        facts_then: dict[int, dict[str, Any]],
    ) -> None:
        """Look at some more steps, in order.

        Args:
            losses: by step.
            observations: by step, of those that were recorded.
            facts_then: by step, fields of `Facts` as they were then; what is used is taken out.
        """
        for step in sorted({*losses, *observations}):
            if step in losses:
                self.losses.add(losses[step])
                self._seen.add("loss")
            if step in observations:
                self.facts = replace(self.facts, **facts_then.pop(step, {}))
                self.observe(observations[step])

    def observe(self, observation: Observation) -> None:
        """Let every rule look at the next observation, and say what is new."""
        self.first = self.first or observation
        self.observations.append(observation)
        self.median_updates.add(observation.step, observation.of("update_ratio"))
        self.early_changes.add(observation.step, observation.of("changed_frac"))
        self._seen.update(observation.values, observation.globals, ["classes"] if self.facts.chance_loss else ())
        history = History(
            self.observations, self.first, self.losses, self.facts, self.median_updates, self.early_changes
        )
        if any(finding.name == "non_finite" for finding in self.findings):
            return  # nothing that comes after NaN tells anything
        for latch in self._latches:
            finding = latch.update(history)
            line = self._announcer.line(finding, self.findings) if finding else None
            if line:
                self._say(f"diagnosis: {line}")

    def state_dict(self) -> dict[str, Any]:
        """Findings and baselines; lists, texts and numbers only."""
        first = self.first
        values = None if first is None else {quantity: dict(layers) for quantity, layers in first.values.items()}
        return {
            "latches": [[latch.rule.name, latch.state_dict()] for latch in self._latches],
            "losses": self.losses.state_dict(),
            "moves": self.median_updates.state_dict(),
            "changes": [[step, share] for step, share in self.early_changes.at.items()],
            "first": None if first is None else [first.step, values, dict(first.globals)],
            "seen": sorted(self._seen),
            "said": sorted(self._announcer.said),
            "constant": dict(self.facts.constant),
            "task": [self.facts.chance_loss, self.facts.softmax_twice],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        saved: dict[str, list[Any]] = defaultdict(list)
        for name, latch_state in state["latches"]:
            saved[name].append(latch_state)
        for latch in self._latches:
            if saved[latch.rule.name]:
                latch.load_state_dict(saved[latch.rule.name].pop(0))
        self.losses.load_state_dict(state["losses"])
        self.median_updates.load_state_dict(state["moves"])
        self.early_changes.at = dict(state.get("changes", []))
        self.first = None if state["first"] is None else Observation(*state["first"])
        self._seen, self._announcer = set(state["seen"]), Announcer(state["said"])
        self.facts.constant = dict(state["constant"])
        self.know_task(*state["task"])
