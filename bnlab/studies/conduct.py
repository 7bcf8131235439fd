"""The study itself: keeps an engine busy until every run has its result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bnlab.studies.grid import Run
from bnlab.studies.local_engine import Ended
from bnlab.studies.lock import is_locked, locked
from bnlab.studies.results import of_failed_run, read_result, write_result
from bnlab.studies.tasks import OK, TAKEN, task

_POLL_S = 0.1
_ELSEWHERE_S = 1.0  # between two looks at runs that another study works on


class Engine(Protocol):
    """What starts runs and tells when they have ended."""

    name: str
    jobs: int
    threads: int

    @property
    def free(self) -> bool:
        """Whether one more run can start."""

    def start(self, name: str, task: Mapping[str, Any]) -> None:
        """Start a run."""

    def ended(self) -> list[Ended]:
        """Runs that have ended since the last call."""

    def stop(self) -> None:
        """End all runs that are still working, at once."""


class Watcher(Protocol):
    """What shows a study's progress."""

    def started(self, run: Run) -> None:
        """Take note of a run that was started."""

    def ended(self, run: Run, result: Mapping[str, Any]) -> None:
        """Take note of a run that has its result."""

    def tick(self, state: State) -> None:
        """Look at the study; called several times a second."""


@dataclass
class State:
    """Where the runs of a study stand."""

    folder: Path
    waiting: list[Run]
    running: dict[str, Run] = field(default_factory=dict)
    elsewhere: list[Run] = field(default_factory=list)  # those among the waiting that another process works on
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the run's name


def begin(folder: Path, runs: Sequence[Run], retry_failed: bool) -> State:
    """Sort a study's runs into those that have their result and those that wait for it."""
    state = State(folder, [])
    for run in runs:
        result = read_result(folder / run.name)
        if result is None or (retry_failed and result["outcome"]["status"] == "failed"):
            state.waiting.append(run)
        else:
            state.results[run.name] = result
    return state


def conduct(state: State, engine: Engine, watcher: Watcher) -> None:
    """Run what waits, until nothing does.

    A run that another process works on is left to it and looked at again, so two studies over the same folder share
    the work and both end when all is done. Whatever ends this function ends the runs that are working.
    """
    failed = {run.name: read_result(state.folder / run.name) for run in state.waiting}
    study = {"engine": engine.name, "jobs": engine.jobs, "threads": engine.threads}
    looked = -_ELSEWHERE_S
    try:
        while state.waiting or state.running:
            if engine.free and time.monotonic() - looked >= (_ELSEWHERE_S if state.elsewhere else 0):
                looked = time.monotonic()
                _start_some(state, engine, watcher, failed, study)
            for ended in engine.ended():
                run = state.running.pop(ended.name)
                result = _result(state, run, ended, task(run, state.folder, study))
                if result is None:
                    state.waiting.append(run)
                    looked = time.monotonic()
                else:
                    state.results[run.name] = result
                    watcher.ended(run, result)
            watcher.tick(state)
            time.sleep(_POLL_S)
    finally:
        engine.stop()


def _start_some(
    state: State, engine: Engine, watcher: Watcher, failed: Mapping[str, Any], study: Mapping[str, Any]
) -> None:
    """Start waiting runs while there is room, and sort out those that another process works on or has ended.

    `failed` has the results that were there when the study began: those are tried again, any newer one counts.
    """
    state.elsewhere = []
    for run in list(state.waiting):
        if not engine.free:
            return
        folder = state.folder / run.name
        result = read_result(folder)
        if is_locked(folder):
            state.elsewhere.append(run)
        elif result is not None and result != failed[run.name]:
            state.waiting.remove(run)
            state.results[run.name] = result
            watcher.ended(run, result)
        else:
            state.waiting.remove(run)
            state.running[run.name] = run
            engine.start(run.name, task(run, state.folder, study))
            watcher.started(run)


def _result(state: State, run: Run, ended: Ended, content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a run whose process has ended, written here where it could not; None if another has the run."""
    folder = state.folder / run.name
    if ended.status == TAKEN:
        return None
    result = read_result(folder)
    if ended.status == OK and result is not None:
        return result
    with locked(folder) as held:
        if not held:
            return None
        write_result(folder, of_failed_run(folder, content, ended.status, ended.reason))
    return read_result(folder)
