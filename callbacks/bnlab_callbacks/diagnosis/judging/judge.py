"""The judge of a run: what its rules make of the observations, step by step."""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from bnlab_callbacks.diagnosis.findings import Advice, Advise, Finding, advised
from bnlab_callbacks.diagnosis.judging.causes import by_cause
from bnlab_callbacks.diagnosis.judging.latch import Announcer, Latch
from bnlab_callbacks.diagnosis.observations import (
    OF_THE_FIRST_BATCH,
    EarlyChanges,
    Facts,
    History,
    Losses,
    MedianUpdates,
    Observation,
    Task,
)
from bnlab_callbacks.diagnosis.rules.catalogue import RULES
from bnlab_callbacks.diagnosis.rules.fitting_advice import fitting, is_kaiming
from bnlab_callbacks.diagnosis.rules.rule import Rule
from bnlab_callbacks.diagnosis.rules.unchecked import unchecked
from bnlab_callbacks.statistics.losses import not_finite

_KEPT = 64  # observations that rules may look back on
SHORT, _BATCHES = 0.5, 9  # of the median of so many batches: what a shorter one shows is not judged
_SOON = 20  # steps
NON_FINITE = "non_finite"


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
        first: the first values of each quantity.

    Args:
        rules: to be checked.
        chance_loss: the loss of a net that knows nothing, where the user gave it.
        advise: gives the text of an advice.
        say: is given each line that is to be said while the run goes on.
        tell: is given each finding that began or grew worse.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        chance_loss: float | None,
        advise: Advise | None,
        say: Callable[[str], None],
        tell: Callable[[Finding], None],
    ) -> None:
        self.facts = Facts(chance_loss=chance_loss)
        self.losses = Losses()
        self.observations: deque[Observation] = deque(maxlen=_KEPT)
        self.median_updates = MedianUpdates()
        self.early_changes = EarlyChanges()
        self.first: Observation | None = None
        self._rules = rules
        self._explains = {rule.name: frozenset(rule.explains) for rule in rules if rule.explains is not None}
        self._chance_loss = chance_loss
        self._advise = advise
        self._say = say
        self._tell = tell
        self._latches = [Latch(rule, self._advice) for rule in rules]
        self._announcer = Announcer()
        self._events: list[Finding] = []
        self._seen: set[str] = set()
        self._broken = 0  # observations in a row, up to the last one, that are not finite
        self._samples: deque[float] = deque(maxlen=_BATCHES)
        self._step = -1  # the last one with a loss

    def _advice(self, rule: Rule) -> tuple[Advice, ...]:
        """What to try where a rule finds something in this net."""
        began = self.first.of("weight_rms") if self.first else {}
        has = self.facts.has | ({"own_init"} if is_kaiming(began, self.facts.inputs) else set())
        return advised(fitting(rule.keyed_advice, has), self._advise) if rule.advice else ()

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, each cause before its consequences; see `by_cause`."""
        return by_cause((finding for latch in self._latches for finding in latch.findings), self._explains)

    def not_checked(self, failures: Mapping[str, str | None]) -> dict[str, str]:
        """Rules that could not be checked → why; `failures` say what was not recorded."""
        return unchecked(self._rules, self._seen, failures)

    def know(self, facts: Facts, resumed: bool) -> None:
        """Take in what is known of the net when training begins or goes on."""
        known, self.facts = self.facts, facts
        self.facts.chance_loss, self.facts.softmax_twice = known.chance_loss, known.softmax_twice
        self.facts.task = known.task
        if resumed:
            self.facts.constant = known.constant

    def know_task(self, task: Task) -> None:
        """Take in what is known of the task; a loss of guessing that the user gave is not changed by it."""
        self.facts.chance_loss = self._chance_loss or (None if math.isnan(task.chance) else task.chance)
        self.facts.softmax_twice = bool(task.probabilities)
        self.facts.task = task

    @property
    def task_numbers(self) -> list[float]:
        """What is known of the task, for other ranks to take over."""
        return [self.facts.chance_loss or 0.0, float(self.facts.softmax_twice), *map(float, self.facts.task)]

    @task_numbers.setter
    def task_numbers(self, numbers: Sequence[float]) -> None:
        chance, twice, *task = numbers
        self.facts.chance_loss, self.facts.softmax_twice = chance or None, bool(twice)
        self.facts.task = Task(*task)

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
                self._step = step
            if step in observations:
                facts = facts_then.pop(step, {})
                if not self._is_short(observations[step]):
                    self.facts = replace(self.facts, **facts)
                self.observe(observations[step])
        self._announce()

    def close(self, short: bool = False) -> None:
        """Judge the losses after the last observation, when training has ended.

        Args:
            short: whether the last one is of a batch much shorter than others; then it does not count, if it is finite.
        """
        if short and len(self.losses.recent) > 1 and not not_finite(self.losses.recent[-1]):
            self.losses.recent.pop()
            self._step -= 1
        seen = self.observations[-1].step if self.observations else -1
        if self._step > seen and self.losses.recent:
            now = Observation(self._step)
            history = self._history([*self.observations, now], self.first or now)
            if not self._is_not_finite(self._latches, history):
                for latch in self._latches:
                    if latch.rule.of_losses:
                        self._update(latch, history)
            self._announce()

    def _is_short(self, observation: Observation) -> bool:
        """Whether a batch is much shorter than those before, as an epoch's last one may be."""
        return observation.globals.get("samples", math.inf) < SHORT * self.usual_samples

    @property
    def usual_samples(self) -> float:
        """Samples in a usual batch; 0 where that is not known."""
        return median(self._samples) if self._samples else 0.0

    def observe(self, observation: Observation) -> None:
        """Let rules look at the next observation: those for which it has anything, and of a short batch one alone."""
        short = self._is_short(observation)
        if "samples" in observation.globals:
            self._samples.append(observation.globals["samples"])
        task = self.facts.task
        known = {"task": task.kind, "classes": task.classes or self._chance_loss, "chance": self.facts.chance_loss}
        self._seen.update(observation.values, observation.globals, [name for name, there in known.items() if there])
        if self._broken > 1:  # the first of them tells what began
            self.observations.pop()
        self.observations.append(observation)
        first = _first(self.first, observation)
        missing = {*first.values, *first.globals} - {*observation.values, *observation.globals} - OF_THE_FIRST_BATCH
        latches = [latch for latch in self._latches if missing.isdisjoint(latch.rule.needs)]
        history = self._history(self.observations, first)
        if self._is_not_finite(latches, history):  # nothing else tells anything of this step
            self._broken += 1
            return
        if self._broken:
            del self.observations[-2]
        self._broken = 0
        self.first = first
        self.median_updates.add(observation.step, observation.of("update_ratio"))
        self.early_changes.add(observation.step, observation.of("changed_frac"))
        for latch in latches:
            if latch.rule.name != NON_FINITE and not short:
                self._update(latch, history)

    def _history(self, observations: Sequence[Observation], first: Observation) -> History:
        return History(observations, first, self.losses, self.facts, self.median_updates, self.early_changes)

    def _is_not_finite(self, latches: Sequence[Latch], history: History) -> bool:
        found = [self._update(latch, history) for latch in latches if latch.rule.name == NON_FINITE]
        return any(found)

    def _update(self, latch: Latch, history: History) -> bool:
        """Whether a latch has an open finding after the next observation."""
        if event := latch.update(history):
            self._events.append(event)
        return latch.open is not None

    def _announce(self) -> None:
        if self._events:
            events, self._events = self._events, []
            findings = self.findings
            for line in self._announcer.lines(events, findings):
                self._say(f"diagnosis: {line}")
            new = {(event.name, event.since) for event in events if event.ended is None}
            for finding in findings:
                if (finding.name, finding.since) in new:
                    self._tell(finding)

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
            "task": self.task_numbers,
            "samples": list(self._samples),
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
        self.task_numbers = state["task"]
        self._samples.extend(state.get("samples", ()))


def _first(first: Observation | None, now: Observation) -> Observation:
    """The first values of each quantity, and of layers that came soon after: optimizers may step in turn."""
    if first is None:
        return now
    soon = now.step - first.step < _SOON
    new = {
        quantity: {**layers, **first.of(quantity)} if first.of(quantity) else layers
        for quantity, layers in now.values.items()
        if quantity not in first.values or (soon and not layers.keys() <= first.of(quantity).keys())
    }
    if not new and now.globals.keys() <= first.globals.keys():
        return first
    return Observation(first.step, {**first.values, **new}, {**now.globals, **first.globals}, first.bad_rank)
