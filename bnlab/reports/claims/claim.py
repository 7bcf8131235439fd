"""Claims of the thesis, the evidence of our runs, and the conclusions from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bnlab.reports.estimates.intervals import Estimate
from bnlab.reports.reading.collection import Collection, Line
from bnlab.reports.reading.curves import CurvesOf
from bnlab.reports.reading.run import Run
from bnlab.reports.thesis.experiments import BATCH_SIZE, norm_words

MATCH = 0.5  # points below another accuracy that still match it

Verdict = Literal["supported", "contradicted", "cannot tell"]


@dataclass(frozen=True)
class Finding:
    """The verdict of the runs on one dataset."""

    scope: str  # the dataset's name for readers
    verdict: Verdict
    numbers: str  # one sentence
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Evidence:
    """The runs that claims are judged by: those of the thesis's experiments without a change of their own."""

    collection: Collection
    curves: CurvesOf

    def runs(
        self, architecture: str, experiment: str, dataset: str, batch_norm: bool, batch_size: int = BATCH_SIZE
    ) -> list[Run]:
        """The runs of a cell, one for each seed."""
        line = Line(architecture, f"{architecture}_{experiment}", (), batch_size)
        return self.collection.cell(line, dataset, batch_norm)

    def sides(
        self, architecture: str, experiment: str, dataset: str, batch_size: int = BATCH_SIZE
    ) -> tuple[list[Run], list[Run]]:
        """The runs of both nets: vanilla, batch norm."""
        line = Line(architecture, f"{architecture}_{experiment}", (), batch_size)
        return self.collection.sides(line, dataset)

    def datasets(self, architecture: str, experiments: Sequence[str]) -> list[str]:
        """Datasets that one of the experiments has runs on, with any batch size."""
        names = {f"{architecture}_{experiment}" for experiment in experiments}
        lines = [
            line
            for line in self.collection.lines
            if line.architecture == architecture and line.experiment in names and not line.changes
        ]
        return self.collection.datasets(lines)


Judge = Callable[[Evidence, str, str], Finding | None]  # of evidence, architecture, dataset; None if runs are missing


class Side(NamedTuple):
    """One of two nets that are compared."""

    experiment: str
    batch_norm: bool

    def runs(self, evidence: Evidence, architecture: str, dataset: str) -> list[Run]:
        """Its runs, one for each seed."""
        return evidence.runs(architecture, self.experiment, dataset, self.batch_norm)

    def name(self, architecture: str) -> str:
        """`mlp_relu batch norm`."""
        return f"{architecture}_{self.experiment} {norm_words(self.batch_norm)}"


def higher(gain: Estimate) -> Verdict:
    """Supported if the whole interval lies above 0, contradicted if below; cannot tell without an interval."""
    return at_least(gain, 0.0)


def at_least(gain: Estimate, margin: float = MATCH) -> Verdict:
    """Supported if the whole interval lies above −margin (points), contradicted if below; cannot tell without one."""
    if gain.half_width is None:
        return "cannot tell"
    if gain.low > -margin:
        return "supported"
    return "contradicted" if gain.high < -margin else "cannot tell"


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Contradicted if one of them is, supported if each is."""
    found = set(verdicts)
    if "contradicted" in found:
        return "contradicted"
    return "supported" if found == {"supported"} else "cannot tell"


@dataclass(frozen=True)
class Claim:
    """A claim of the thesis.

    Attributes:
        architecture: mlp or cnn.
        statement: the claim in our words, so that it can be true or false.
        quote: the claim in the thesis's words.
        where: its sections and figures.
        experiments: those that it needs runs of, with and without batch norm unless `judge` needs less.
        judge: the function that finds a verdict on one dataset.
        batch_sizes: those that it needs runs of.
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
    """A claim, its verdict, and the findings on each dataset."""

    claim: Claim
    verdict: Verdict
    findings: tuple[Finding, ...]
    reason: str  # of "cannot tell"; else empty

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs that it rests on."""
        return tuple(dict.fromkeys(run for finding in self.findings for run in finding.runs))
