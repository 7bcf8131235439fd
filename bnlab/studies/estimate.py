"""How long runs take: as long as others of their kind did, or what a few steps cost here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from bnlab.studies.grid import Run

# from the most to the least alike; a run is compared with the first kind that has results
_KINDS: tuple[tuple[str, ...], ...] = (
    ("experiment", "dataset", "batch_norm", "batch_size", "overrides"),
    ("architecture", "dataset", "batch_norm", "batch_size", "overrides"),
    ("architecture", "dataset", "batch_size", "overrides"),
    ("architecture", "dataset", "overrides"),
)


class Estimate(NamedTuple):
    """Seconds that a run takes, with the source of that number."""

    seconds: float
    source: str


def from_results(run: Run, results: Iterable[Mapping[str, Any]]) -> Estimate | None:
    """The mean duration of the results most like the run; None where none is alike."""
    known = [result for result in results if seconds_of(result) is not None]
    for kind in _KINDS:
        alike = [result for result in known if all(result.get(name) == run.identity[name] for name in kind)]
        if alike:
            seconds = [seconds_of(result) or 0.0 for result in alike]
            return Estimate(sum(seconds) / len(seconds), f"{len(alike)} finished run{'s' * (len(alike) > 1)} like it")
    return None


def seconds_of(result: Mapping[str, Any]) -> float | None:
    """The time that a run's epochs took; None for one that has none or that failed."""
    outcome = result["outcome"]
    if outcome["status"] == "failed" or result.get("seconds_per_epoch") is None:
        return None
    return float(result["seconds_per_epoch"]) * int(outcome["epochs"])


def total(runs: Iterable[Run], estimate: Callable[[Run], Estimate | None], jobs: int) -> float | None:
    """Seconds until `jobs` at a time have ended all runs; None where one of them cannot be estimated."""
    estimates = [estimate(run) for run in runs]
    known = [found.seconds for found in estimates if found is not None]
    if not known or len(known) < len(estimates):
        return None
    return max(sum(known) / jobs, max(known))
