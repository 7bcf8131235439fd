"""What a conclusion of the thesis is, and what is found of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bnlab.reports.collection import Collection, Line
from bnlab.reports.curves import Curves
from bnlab.reports.names import BATCH_SIZE
from bnlab.reports.runs import Run

Verdict = Literal["supported", "contradicted", "cannot tell"]


@dataclass(frozen=True)
class Finding:
    """What the runs on one dataset say of a conclusion."""

    scope: str  # the dataset, for people
    verdict: Verdict
    numbers: str  # one sentence
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Evidence:
    """The runs that conclusions are judged by: those of the thesis's experiments, nothing changed but for all alike."""

    collection: Collection
    curves: Callable[[Run], Curves]  # a run's records

    def runs(
        self, architecture: str, experiment: str, dataset: str, batch_norm: bool, batch_size: int = BATCH_SIZE
    ) -> list[Run]:
        """One for each seed; none if there are none."""
        line = Line(architecture, f"{architecture}_{experiment}", (), batch_size)
        return self.collection.cell(line, dataset, batch_norm)

    def datasets(self, architecture: str, experiments: Sequence[str]) -> list[str]:
        """Datasets that some of the experiments has runs on, with any batch size."""
        names = {f"{architecture}_{experiment}" for experiment in experiments}
        lines = [
            line
            for line in self.collection.lines
            if line.architecture == architecture and line.experiment in names and not line.changes
        ]
        return self.collection.datasets(lines)


Judge = Callable[[Evidence, str, str], Finding | None]  # evidence, architecture, dataset; None: runs are missing


@dataclass(frozen=True)
class Claim:
    """A conclusion of the thesis.

    Attributes:
        architecture: mlp or cnn.
        statement: the conclusion in our words, so that it can be true or false.
        quote: in the thesis's words.
        where: sections and figures.
        experiments: whose runs it needs, with and without batch norm unless `judge` needs less.
        judge: one dataset's finding.
        batch_sizes: which it needs.
    """

    architecture: str
    statement: str
    quote: str
    where: str
    experiments: tuple[str, ...]
    judge: Judge
    batch_sizes: tuple[int, ...] = (BATCH_SIZE,)


@dataclass(frozen=True)
class Conclusion:
    """A claim and what was found, dataset by dataset."""

    claim: Claim
    verdict: Verdict
    findings: tuple[Finding, ...]
    reason: str  # why it cannot be told; else empty

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs that it rests on."""
        return tuple(dict.fromkeys(run for finding in self.findings for run in finding.runs))


def conclude(claim: Claim, evidence: Evidence) -> Conclusion:
    """Judge a claim on every dataset that has runs for it.

    Supported or contradicted where at least one dataset says so and none the opposite; datasets that cannot tell are no
    objection.
    """
    datasets = evidence.datasets(claim.architecture, claim.experiments)
    found = [claim.judge(evidence, claim.architecture, dataset) for dataset in datasets]
    findings = tuple(finding for finding in found if finding is not None)
    verdicts = {finding.verdict for finding in findings}
    decided = verdicts - {"cannot tell"}
    if len(decided) == 1:
        return Conclusion(claim, decided.pop(), findings, "")
    if decided:
        return Conclusion(claim, "cannot tell", findings, f"the datasets disagree: {_by_verdict(findings)}")
    if findings:
        return Conclusion(claim, "cannot tell", findings, "the runs do not decide it")
    return Conclusion(claim, "cannot tell", (), f"runs are missing; {command(claim)} makes them")


def _by_verdict(findings: Sequence[Finding]) -> str:
    parts = []
    for verdict in ("supported", "contradicted"):
        scopes = [finding.scope for finding in findings if finding.verdict == verdict]
        parts.append(f"{verdict} on {', '.join(scopes)}")
    return "; ".join(parts)


def command(claim: Claim) -> str:
    """What makes the runs that a claim needs."""
    names = ",".join(f"{claim.architecture}_{experiment}" for experiment in claim.experiments)
    sizes = "" if claim.batch_sizes == (BATCH_SIZE,) else f" --batch_sizes {','.join(map(str, claim.batch_sizes))}"
    return f"bnlab study --configs {names} --datasets mnist --batch_norm both{sizes}"
