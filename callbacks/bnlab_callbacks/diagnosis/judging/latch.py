"""The life of a finding: from verdicts on single observations to its beginning, its end, and their announcement."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bnlab_callbacks.diagnosis.findings import SEVERITIES, Advice, Finding, Verdict
from bnlab_callbacks.diagnosis.judging.causes import headline
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rules.rule import Rule

_CALM = 10  # steps without a verdict that end a finding, at least
_ENOUGH = 5  # observations in a row that show that something lasts, however far apart they are
_REPEATS = 3  # findings of one rule in a run; what comes back after that is the last one again


class Latch:
    """Follows one rule through a run.

    A finding begins when the rule has held for its patience, and is over at the first observation at which it does not.
    One that comes back before it has been over for as long (ten steps and five observations at least) is the same
    finding, opened again; it is only announced to be over after that.

    Args:
        rule: the rule.
        advise: gives what to try where the rule finds something; None for the rule's own advice.
    """

    def __init__(self, rule: Rule, advise: Callable[[Rule], Sequence[Advice]] | None = None) -> None:
        self.rule = rule
        self.findings: list[Finding] = []
        self._advise = advise or (lambda rule: rule.keyed_advice)
        self._latched = False  # whether a verdict counts at once: the last finding lasts, or may come back
        self._held = 0
        self._calm = 0
        self._since = 0
        self._calm_since = 0

    @property
    def open(self) -> Finding | None:
        """The finding that lasts, if one does."""
        return self.findings[-1] if self.findings and self.findings[-1].ended is None else None

    def update(self, history: History) -> Finding | None:
        """Judge the next observation; the finding that began, grew worse or is over, if it is worth an announcement."""
        verdict = self.rule.judge(history)
        step = history.now.step
        if verdict is None:
            return self._without_verdict(step)
        if not self._held:
            self._since = step if verdict.since is None else verdict.since
        self._held += 1
        self._calm = 0
        if not self._latched and not _lasts(self._held, step - self._since, self.rule.patience):
            return None
        return self._with_verdict(verdict, step)

    def _without_verdict(self, step: int) -> Finding | None:
        if not self._calm:
            self._calm_since = step
        self._calm += 1
        if not self._latched:
            self._held = 0
            return None
        if self.open is not None:
            self.findings[-1] = replace(self.findings[-1], ended=step)
        if not _lasts(self._calm, step - self._calm_since, max(_CALM, self.rule.patience)):
            return None
        self._held, self._latched = 0, False
        return self.findings[-1]

    def _with_verdict(self, verdict: Verdict, step: int) -> Finding | None:
        severity = verdict.severity or self.rule.severity
        keys, texts = zip(*advice, strict=True) if (advice := self._advise(self.rule)) else ((), ())
        finding = Finding(
            self.rule.name, severity, verdict.layer, self._since, verdict.evidence, texts, step, advice_keys=keys
        )
        begins, self._latched = not self._latched, True
        if begins and len(self.findings) < _REPEATS:
            self.findings.append(finding)
            return finding
        known = self.findings[-1] = replace(self.findings[-1], ended=None)
        if severity == known.severity:
            return None
        worse = SEVERITIES.index(severity) < SEVERITIES.index(known.severity)
        self.findings[-1] = replace(finding, since=known.since, noticed=step if worse else known.noticed)
        return self.findings[-1] if worse else None

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: lists, texts and numbers."""
        return {
            "findings": [finding.to_dict() for finding in self.findings],
            "latched": self._latched,
            "held": self._held,
            "calm": self._calm,
            "since": self._since,
            "calm_since": self._calm_since,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.findings = [Finding.from_dict(values) for values in state["findings"]]
        self._latched = state.get("latched", self.open is not None)
        self._held, self._calm, self._since = state["held"], state["calm"], state["since"]
        self._calm_since = state["calm_since"]


def _lasts(observations: int, steps: int, patience: int) -> bool:
    """Whether so many observations in a row, `steps` from the first to the last, meet a rule's patience."""
    return observations >= min(_ENOUGH, patience) and steps + 1 >= patience


class Announcer:
    """Says what is new at a look, and not what merely follows from something that was said.

    Attributes:
        said: names of findings that have had a line, or were explained in one.
    """

    def __init__(self, said: Sequence[str] = ()) -> None:
        self.said = set(said)

    def lines(self, events: Sequence[Finding], findings: Sequence[Finding]) -> list[str]:
        """The lines for what a look has brought.

        While something failing lasts, nothing else that is no cause of it has a line.

        Args:
            events: findings that began, grew worse or are over, in order.
            findings: all of the run, as `by_cause` gives them.
        """
        failing = any(finding.severity == "failing" and finding.ended is None for finding in findings)
        begun = {finding.name: finding for finding in events if finding.ended is None}
        out = []
        for cause in (finding for finding in findings if finding.cause is None):
            group = [cause, *(other for other in findings if other.cause == cause.name)]
            if (fresh := [one.name for one in group if one.name in begun]) and self._is_news(
                cause, group, begun, failing
            ):
                out.append(headline(findings, cause))
                self.said.update(one.name for one in group)
            for name in fresh:
                begun.pop(name)
        causes = {finding.name for finding in findings if finding.cause is None}
        over = [one for one in events if one.ended is not None and one.name in self.said & causes and not failing]
        return out + [f"over since step {one.ended}: {one.title} (began at step {one.since})" for one in over]

    def _is_news(self, cause: Finding, group: list[Finding], begun: dict[str, Finding], failing: bool) -> bool:
        """Whether a group of findings, of which some have just begun or grown worse, gets a line."""
        grave = {one.name for one in group if begun.get(one.name, one).severity == "failing"}
        if cause.name in self.said:
            return cause.name in grave & begun.keys() or bool(grave & begun.keys() and not grave & self.said)
        return bool(grave) or not failing
