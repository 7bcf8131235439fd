"""The life of a finding: from verdicts on single observations to its beginning, its end, and their announcement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bnlab_callbacks.diagnosis.findings import SEVERITIES, Finding, Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rule import Rule

_CALM = 10  # steps without a verdict that end a finding, at least
_ENOUGH = 5  # observations in a row that show that something lasts, however far apart they are
_REPEATS = 3  # findings of one rule in a run that are announced


class Latch:
    """Follows one rule through a run: a finding begins when the rule has held for its patience, and ends likewise."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.findings: list[Finding] = []
        self._held = 0
        self._calm = 0
        self._since = 0
        self._calm_since = 0

    @property
    def open(self) -> Finding | None:
        """The finding that lasts, if one does."""
        return self.findings[-1] if self.findings and self.findings[-1].ended is None else None

    def update(self, history: History) -> Finding | None:
        """Judge the next observation; the finding that began, grew worse or ended, if it is worth an announcement."""
        verdict = self.rule.judge(history)
        step = history.now.step
        if verdict is None:
            return self._without_verdict(step)
        if not self._held:
            self._since = step if verdict.since is None else verdict.since
        self._held += 1
        self._calm = 0
        if not _lasts(self._held, step - self._since, self.rule.patience):
            return None
        return self._with_verdict(verdict, step)

    def _without_verdict(self, step: int) -> Finding | None:
        if not self._calm:
            self._calm_since = step
        self._calm += 1
        if self.open is None:
            self._held = 0
        elif _lasts(self._calm, step - self._calm_since, max(_CALM, self.rule.patience)):
            self.findings[-1] = replace(self.findings[-1], ended=step)
            self._held = 0
            return self._unless_repeated(self.findings[-1])
        return None

    def _with_verdict(self, verdict: Verdict, step: int) -> Finding | None:
        severity = verdict.severity or self.rule.severity
        keys, texts = zip(*self.rule.keyed_advice, strict=True) if self.rule.advice else ((), ())
        finding = Finding(
            self.rule.name, severity, verdict.layer, self._since, verdict.evidence, texts, step, advice_keys=keys
        )
        if self.open is None:
            self.findings.append(finding)
            return self._unless_repeated(finding)
        if SEVERITIES.index(severity) < SEVERITIES.index(self.open.severity):
            self.findings[-1] = replace(finding, since=self.open.since)
            return self._unless_repeated(self.findings[-1])
        return None

    def _unless_repeated(self, finding: Finding) -> Finding | None:
        return finding if len(self.findings) <= _REPEATS else None

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: lists, texts and numbers."""
        return {
            "findings": [finding.to_dict() for finding in self.findings],
            "held": self._held,
            "calm": self._calm,
            "since": self._since,
            "calm_since": self._calm_since,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.findings = [Finding.from_dict(values) for values in state["findings"]]
        self._held, self._calm, self._since = state["held"], state["calm"], state["since"]
        self._calm_since = state["calm_since"]


def _lasts(observations: int, steps: int, patience: int) -> bool:
    """Whether so many observations in a row, `steps` from the first to the last, meet a rule's patience."""
    return observations >= min(_ENOUGH, patience) and steps + 1 >= patience


def in_order(latches: Sequence[Latch]) -> list[Finding]:
    """All findings, the gravest first, then by the step at which they began."""
    found = [finding for latch in latches for finding in latch.findings]
    return sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), finding.since))


class Announcer:
    """Announces each finding once, and not what merely follows from another."""

    def __init__(self, said: Sequence[str] = ()) -> None:
        self.said = set(said)  # names of findings

    def line(self, finding: Finding, findings: Sequence[Finding]) -> str | None:
        """The line for a finding that began, grew worse or ended, among all findings of the run; None for no line.

        While something failing lasts, only other failing findings have a line: warnings follow from it.
        """
        failing = {other.name for other in findings if other.severity == "failing" and other.ended is None}
        known = finding.name in self.said
        if finding.ended is not None:
            over = f"over since step {finding.ended}: {finding.title} (began at step {finding.since})"
            return over if known and not failing else None
        if finding.severity != "failing" and (known or failing):
            return None
        self.said.add(finding.name)
        return finding.line
