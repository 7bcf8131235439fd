"""From verdicts on single observations to findings that begin, last and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bnlab_callbacks.diagnosis.findings import SEVERITIES, Finding, Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rule import Rule

_CALM = 10  # steps without a verdict that end a finding, at least
_LOOKS = 5  # that show that something lasts, however far apart they are
_SAID = 3  # times that one rule's findings are said in a run


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
        """Look at the next observation; the finding that began, grew worse or ended, where it is to be said."""
        verdict = self.rule.judge(history)
        step = history.now.step
        if verdict is None:
            return self._rest(step)
        if not self._held:
            self._since = step if verdict.since is None else verdict.since
        self._held += 1
        self._calm = 0
        if not _lasts(self._held, step - self._since, self.rule.patience):
            return None
        return self._found(verdict, step)

    def _rest(self, step: int) -> Finding | None:
        if not self._calm:
            self._calm_since = step
        self._calm += 1
        if self.open is None:
            self._held = 0
        elif _lasts(self._calm, step - self._calm_since, max(_CALM, self.rule.patience)):
            self.findings[-1] = replace(self.findings[-1], ended=step)
            self._held = 0
            return self._said(self.findings[-1])
        return None

    def _found(self, verdict: Verdict, step: int) -> Finding | None:
        severity = verdict.severity or self.rule.severity
        finding = Finding(
            self.rule.name, severity, verdict.layer, self._since, verdict.evidence, self.rule.advice, step
        )
        if self.open is None:
            self.findings.append(finding)
            return self._said(finding)
        if SEVERITIES.index(severity) < SEVERITIES.index(self.open.severity):
            self.findings[-1] = replace(finding, since=self.open.since)
            return self._said(self.findings[-1])
        return None

    def _said(self, finding: Finding) -> Finding | None:
        return finding if len(self.findings) <= _SAID else None

    def state_dict(self) -> dict[str, Any]:
        """Lists, texts and numbers."""
        return {
            "findings": [finding.to_dict() for finding in self.findings],
            "held": self._held,
            "calm": self._calm,
            "since": self._since,
            "calm_since": self._calm_since,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self.findings = [Finding.from_dict(values) for values in state["findings"]]
        self._held, self._calm, self._since = state["held"], state["calm"], state["since"]
        self._calm_since = state["calm_since"]


def _lasts(looks: int, steps: int, patience: int) -> bool:
    """Whether what was so at that many looks in a row, `steps` from the first to the last, has been so long enough."""
    return looks >= min(_LOOKS, patience) and steps + 1 >= patience


def in_order(latches: Sequence[Latch]) -> list[Finding]:
    """All findings, the gravest first, then by the step at which they began."""
    found = [finding for latch in latches for finding in latch.findings]
    return sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), finding.since))
