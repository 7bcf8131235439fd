"""What a diagnosis says: a verdict on one moment, and the finding that it becomes when it lasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

Severity = Literal["failing", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("failing", "warning", "note")  # the worst first


class Verdict(NamedTuple):
    """What a rule says of one observation."""

    evidence: str  # the value, the threshold, what moved before it
    layer: str | None = None  # the first one concerned, in order of execution
    severity: Severity | None = None  # None for the rule's own
    since: int | None = None  # step at which it began, where that can be told; None for that of the observation


@dataclass(frozen=True)
class Finding:
    """Something that is wrong in a run.

    Attributes:
        name: which rule found it, for example `vanishing`.
        severity: `failing`: the net will not train like this; `warning`: it trains worse than it could; `note`.
        layer: the first layer concerned in order of execution, by its module's name; None for the whole net.
        since: optimizer step at which it began, counted from 0 as by `self.log`.
        evidence: values, thresholds, and what moved before.
        advice: one or two changes to try.
        noticed: step at which it was said: a few steps after `since`, when it had lasted long enough to count.
        ended: step at which it was over; None while it lasts.
    """

    name: str
    severity: Severity
    layer: str | None
    since: int
    evidence: str
    advice: tuple[str, ...]
    noticed: int
    ended: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Lists, texts and numbers only."""
        return asdict(self) | {"advice": list(self.advice)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Finding:
        """The inverse of `to_dict`."""
        return cls(**(values | {"advice": tuple(values["advice"])}))

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def line(self) -> str:
        """One line that says it all."""
        where = f" at {self.layer}" if self.layer else ""
        what = f"{self.severity}: {self.title}{where} since step {self.since}: {self.evidence}"
        return f"{what}. Try: {'; '.join(self.advice)}"


def worst(findings: Sequence[Finding]) -> Severity | None:
    """The gravest severity of the findings that last; None where nothing worse than a note does."""
    there = {finding.severity for finding in findings if finding.ended is None}
    return next((severity for severity in SEVERITIES[:2] if severity in there), None)
