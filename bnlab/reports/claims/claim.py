"""Claims of the thesis, the evidence of our runs, and the conclusions from it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bnlab.reports.estimates import Estimate
from bnlab.reports.reading.collection import Collection, Line
from bnlab.reports.reading.curves import CurvesOf
from bnlab.reports.reading.run import Run
from bnlab.reports.thesis.experiments import BATCH_SIZE, dataset_title, norm_words

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
    """One net's runs on one dataset: those of the thesis's experiments without a change of their own."""

    architecture: str
    dataset: str
    collection: Collection
    curves: CurvesOf

    def runs(self, experiment: str, batch_norm: bool, batch_size: int = BATCH_SIZE) -> list[Run]:
        """The runs of a cell, one for each seed."""
        return self.sides(experiment, batch_size)[batch_norm]

    def sides(self, experiment: str, batch_size: int = BATCH_SIZE) -> tuple[list[Run], list[Run]]:
        """The runs with and without batch norm: vanilla first."""
        line = Line(self.architecture, f"{self.architecture}_{experiment}", (), batch_size)
        return self.collection.sides(line, self.dataset)

    def finding(self, verdict: Verdict, numbers: str, runs: Iterable[Run]) -> Finding:
        """A finding on this dataset."""
        return Finding(dataset_title(self.dataset), verdict, numbers, tuple(dict.fromkeys(runs)))


Judge = Callable[[Evidence], Finding | None]  # None if runs are missing


class Side(NamedTuple):
    """One of two nets that are compared."""

    experiment: str
    batch_norm: bool

    def name(self, architecture: str) -> str:
        """`mlp_relu batch norm`."""
        return f"{architecture}_{self.experiment} {norm_words(self.batch_norm)}"


def decide(supported: bool, contradicted: bool) -> Verdict:
    """The verdict of two conditions, the first of which counts."""
    return "supported" if supported else "contradicted" if contradicted else "cannot tell"


def higher(gain: Estimate) -> Verdict:
    """Supported if the whole interval lies above 0, contradicted if below; cannot tell without an interval."""
    return at_least(gain, 0.0)


def at_least(gain: Estimate, margin: float = MATCH) -> Verdict:
    """Supported if the whole interval lies above −margin (points), contradicted if below; cannot tell without one."""
    return "cannot tell" if gain.half_width is None else decide(gain.low > -margin, gain.high < -margin)


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Contradicted if one of them is, supported if each is."""
    found = set(verdicts)
    return decide(found == {"supported"}, "contradicted" in found)


@dataclass(frozen=True)
class Claim:
    """A claim of the thesis."""

    architecture: str  # mlp or cnn
    statement: str  # the claim in our words, so that it can be true or false
    quote: str  # the claim in the thesis's words
    where: str  # its sections and figures
    experiments: tuple[str, ...]  # that it needs, with and without batch norm unless `judge` needs less
    judge: Judge  # the function that finds a verdict on one dataset
    batch_sizes: tuple[int, ...] = (BATCH_SIZE,)  # those that it needs runs of


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


def conclude(claim: Claim, collection: Collection, curves: CurvesOf) -> Conclusion:
    """Judge a claim on every dataset that has runs for it.

    Supported or contradicted if at least one dataset says so and none the opposite; datasets that cannot tell do not
    count.
    """
    net = claim.architecture
    names = {f"{net}_{experiment}" for experiment in claim.experiments}
    lines = (line for line in collection.lines if line.architecture == net and not line.changes)
    datasets = collection.datasets(line for line in lines if line.experiment in names)
    found = [claim.judge(Evidence(net, dataset, collection, curves)) for dataset in datasets]
    findings = tuple(finding for finding in found if finding is not None)
    decided = {finding.verdict for finding in findings} - {"cannot tell"}
    if len(decided) == 1:
        return Conclusion(claim, decided.pop(), findings, "")
    if decided:
        return Conclusion(claim, "cannot tell", findings, f"the datasets disagree: {_by_verdict(findings)}")
    if findings:
        return Conclusion(claim, "cannot tell", findings, "the runs do not decide it")
    return Conclusion(claim, "cannot tell", (), f"runs are missing; {_command(claim)} makes them")


def _by_verdict(findings: Sequence[Finding]) -> str:
    parts = []
    for verdict in ("supported", "contradicted"):
        scopes = [finding.scope for finding in findings if finding.verdict == verdict]
        parts.append(f"{verdict} on {', '.join(scopes)}")
    return "; ".join(parts)


def _command(claim: Claim) -> str:
    """The command that makes the runs that a claim needs."""
    names = ",".join(f"{claim.architecture}_{experiment}" for experiment in claim.experiments)
    sizes = "" if claim.batch_sizes == (BATCH_SIZE,) else f" --batch_sizes {','.join(map(str, claim.batch_sizes))}"
    return f"bnlab study --configs {names} --datasets mnist --batch_norm both{sizes}"
