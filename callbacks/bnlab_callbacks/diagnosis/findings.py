"""Results of a diagnosis: a verdict on one recorded step, the finding that lasting verdicts become, and advice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

Severity = Literal["failing", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("failing", "warning", "note")  # the worst first
NOTHING_OF_THE_KIND = "nothing of the kind in this net"  # why a rule was not checked, where that is no news


class Advice(NamedTuple):
    """Something to try."""

    key: str  # stays the same from release to release; empty for a rule of one's own that has none
    text: str


Advise = Callable[[str, str], str | None]  # key, text → the text to show; None to leave it out


def advised(advice: Iterable[Advice], advise: Advise | None) -> tuple[Advice, ...]:
    """Advice in the words that `advise` gives; as it was where `advise` is None or would leave all of it out."""
    advice = tuple(advice)
    if advise is None:
        return advice
    shown = tuple(Advice(key, said) for key, text in advice if (said := advise(key, text)) is not None)
    return shown or advice


class Verdict(NamedTuple):
    """A rule's complaint about one observation."""

    evidence: str  # the value, the threshold, what moved before
    layer: str | None = None  # the first one concerned, in order of execution
    severity: Severity | None = None  # None for the rule's own
    since: int | None = None  # step at which it began, where that is known; None for the observation's


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
        noticed: step at which it had lasted long enough to count, a few after `since`.
        ended: step at which it was over; None while it lasts.
        advice_keys: a stable key for each advice, empty for what has none; empty as a whole in older files.
        cause: name of the finding that most likely explains it; None where nothing found does.
        explains: names of the findings that it most likely explains.
    """

    name: str
    severity: Severity
    layer: str | None
    since: int
    evidence: str
    advice: tuple[str, ...]
    noticed: int
    ended: int | None = None
    advice_keys: tuple[str, ...] = ()
    cause: str | None = None
    explains: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Lists, texts and numbers only."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Finding:
        """The inverse of `to_dict`."""
        lists = {key: tuple(values.get(key, ())) for key in ("advice", "advice_keys", "explains")}
        return cls(**(values | lists))

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def place(self) -> str:
        """The name in words, and its layer."""
        return f"{self.title} at {self.layer}" if self.layer else self.title

    @property
    def what_to_try(self) -> str:
        """The advice as the end of a line; empty where there is none."""
        return f". Try: {'; '.join(self.advice)}" if self.advice else ""

    @property
    def line(self) -> str:
        """The whole finding as one line."""
        return self.without_advice + self.what_to_try

    @property
    def without_advice(self) -> str:
        """What was found, where, and since when."""
        return f"{self.severity}: {self.place} since step {self.since}: {self.evidence}"


def worst(findings: Sequence[Finding]) -> Severity | None:
    """The gravest severity of the findings that last; None where nothing worse than a note does."""
    there = {finding.severity for finding in findings if finding.ended is None}
    return next((severity for severity in SEVERITIES[:2] if severity in there), None)
