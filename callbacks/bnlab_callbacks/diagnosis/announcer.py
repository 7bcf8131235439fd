"""What is said of findings while a run goes on: each thing once, and not what merely follows from another."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab_callbacks.diagnosis.findings import Finding


class Announcer:
    """Remembers what was said."""

    def __init__(self, said: Sequence[str] = ()) -> None:
        self.said = set(said)  # names of findings

    def line(self, finding: Finding, findings: Sequence[Finding]) -> str | None:
        """What to say of a finding that began, grew worse or ended, among all findings of the run; None for nothing.

        While something failing lasts, only what else is failing is said: the rest follows from it.
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
