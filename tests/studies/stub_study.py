"""A study whose runs are those of `stub_worker`; also a program that tests may kill.

As a program: `python -m tests.studies.stub_study FOLDER JOBS SEEDS STEPS ENGINE`.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnlab.studies.grid import Run
from bnlab.studies.local_engine import LocalEngine, Machine
from bnlab.studies.study import Engine, State, begin, run_study
from tests.studies.grids import runs_of

WORKER = "tests.studies.stub_worker"


class Notes:
    """A watcher that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.most_running = 0

    def started(self, run: Run) -> None:
        """Remember the run."""
        self.lines.append(f"start {run.name}")

    def ended(self, state: State, run: Run) -> None:
        """Remember how it ended."""
        self.lines.append(f"{state.results[run.name]['outcome']['status']} {run.name}")

    def tick(self, state: State) -> None:
        """Count."""
        self.most_running = max(self.most_running, len(state.running))


def stub_study(
    folder: Path,
    seeds: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
    jobs: int = 2,
    retry_failed: bool = False,
    watcher: Notes | None = None,
) -> State:
    """Run seeds to their end, with batch norm only, on the local engine."""
    state = begin(folder, stub_runs(seeds, overrides), retry_failed)
    run_study(state, local_engine(jobs), watcher or Notes())
    return state


def stub_runs(seeds: Sequence[int], overrides: Mapping[str, Any] | None) -> list[Run]:
    """A run for each seed."""
    return runs_of(overrides=overrides, seeds=tuple(seeds), batch_norm=(True,))


def local_engine(jobs: int) -> LocalEngine:
    """For two cores."""
    return LocalEngine(WORKER, jobs, Machine(cores=2, memory=1 << 34))


def ray_engine(jobs: int) -> Engine:
    """On a cluster of its own."""
    from bnlab.studies.ray_engine import RayEngine

    return RayEngine(WORKER, None, jobs, None, jobs)


def main(folder: str, jobs: str, seeds: str, steps: str, engine: str) -> None:
    """The program."""
    state = begin(Path(folder), stub_runs(range(int(seeds)), {"model.steps": int(steps)}), False)
    run_study(state, {"local": local_engine, "ray": ray_engine}[engine](int(jobs)), Notes())


if __name__ == "__main__":
    main(*sys.argv[1:])
