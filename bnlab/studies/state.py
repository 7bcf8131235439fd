"""Where the runs of a study stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bnlab.studies.grid import Run
from bnlab.studies.results import read_result


class Running(NamedTuple):
    """A run that works, since when (`time.monotonic`), and the epochs that it had begun before."""

    run: Run
    since: float
    epochs_before: int


@dataclass
class State:
    """The runs of a study: each is waiting, running, or has its result.

    Attributes:
        folder: the study's.
        waiting: runs that wait.
        running: runs that work, by name.
        results: result.json of the others, by the run's name.
        elsewhere: names of those among the waiting that another process works on.
        before: results of failed runs that are tried again, by name; any newer result counts.
    """

    folder: Path
    waiting: list[Run]
    running: dict[str, Running] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    before: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The number of runs."""
        return len(self.waiting) + len(self.running) + len(self.results)

    @property
    def failed(self) -> dict[str, dict[str, Any]]:
        """The results of runs that failed, by name."""
        return {name: result for name, result in self.results.items() if result["outcome"]["status"] == "failed"}


def begin(folder: Path, runs: Sequence[Run], retry_failed: bool) -> State:
    """Sort a study's runs into those that have their result and those that wait for it."""
    state = State(folder, [])
    for run in runs:
        result = read_result(folder / run.name)
        if result is None:
            state.waiting.append(run)
        elif retry_failed and result["outcome"]["status"] == "failed":
            state.waiting.append(run)
            state.before[run.name] = result
        else:
            state.results[run.name] = result
    return state
