"""The way from claims to conclusions: each claim is judged on every dataset that has runs for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from bnlab.reports.claims.catalogue import CLAIMS
from bnlab.reports.claims.claim import Claim, Conclusion, Evidence, Finding
from bnlab.reports.reading.collection import Collection
from bnlab.reports.reading.curves import CurvesOf, read_curves
from bnlab.reports.thesis.experiments import BATCH_SIZE


def judge_all(
    collection: Collection, claims: Sequence[Claim] = CLAIMS, curves: CurvesOf | None = None
) -> list[Conclusion]:
    """The conclusions on the claims, in their order.

    Args:
        collection: the runs.
        claims: those to judge.
        curves: the function that gives a run's curves; they are read without one.
    """
    curves = curves or cache(lambda run: read_curves(run.folder))
    return [conclude(claim, collection, curves) for claim in claims]


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
