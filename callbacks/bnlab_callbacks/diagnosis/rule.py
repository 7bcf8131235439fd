"""What a rule is: a pure function of the history, how long it must hold, and what to try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bnlab_callbacks.diagnosis.findings import Severity, Verdict
from bnlab_callbacks.diagnosis.observations import History


@dataclass(frozen=True)
class Rule:
    """A rule of a diagnosis.

    Attributes:
        name: of its findings.
        judge: looks at the history up to the present observation; a verdict where something is wrong with it.
        severity: of its findings, where the verdict does not say.
        advice: one or two changes to try.
        needs: what must have been seen for the rule to be checked at all: quantities of an observation, `loss`,
            `classes`; empty for nothing.
        patience: steps for which the judge must say so, at each look and at five looks (or `patience`, if fewer) at
            least, before there is a finding; it is over when the judge has not said so for as long, and ten steps.
    """

    name: str
    judge: Callable[[History], Verdict | None]
    severity: Severity
    advice: tuple[str, ...]
    needs: tuple[str, ...] = ()
    patience: int = 1
