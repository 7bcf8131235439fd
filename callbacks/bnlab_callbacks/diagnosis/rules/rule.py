"""A rule of a diagnosis: a pure function of the history, how long it must hold, and what to try."""

from collections.abc import Callable
from dataclasses import dataclass

from bnlab_callbacks.diagnosis.findings import Advice, Severity, Verdict
from bnlab_callbacks.diagnosis.observations import History


@dataclass(frozen=True)
class Rule:
    """A rule of a diagnosis.

    Attributes:
        name: of its findings.
        judge: gives a verdict where something is wrong with the history up to the present observation.
        severity: of its findings, where the verdict does not say.
        advice: one or two changes to try: texts, or `Advice` where others should know them by a key.
        needs: what must have been recorded for the rule to be checked at all: quantities of an observation, `loss`,
            `classes`; empty for nothing.
        patience: steps for which the judge must give verdicts before there is a finding: at every recorded one, and at
            five of them (or `patience`, if fewer) at least. The finding is over at the first look without a verdict; it
            is the same finding if it comes back within as many steps, ten at least.
        explains: names of the findings that it explains where it does not begin after them; nothing for one more
            symptom of a net that does not learn; None for what `causes.EXPLAINS` says, or else all such symptoms.
    """

    name: str
    judge: Callable[[History], Verdict | None]
    severity: Severity
    advice: tuple[Advice | str, ...]
    needs: tuple[str, ...] = ()
    patience: int = 1
    explains: tuple[str, ...] | None = None

    @property
    def keyed_advice(self) -> tuple[Advice, ...]:
        """The advice, with the empty key where only a text was given."""
        return tuple(Advice("", one) if isinstance(one, str) else one for one in self.advice)

    @property
    def of_losses(self) -> bool:
        """Whether losses and what they compare are all that it needs."""
        return bool(self.needs) and {*self.needs} <= {"loss", "classes", "chance"}
