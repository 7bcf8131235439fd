"""The study itself: where its runs stand, and the loop that keeps an engine busy until each has its result."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bnlab.files.run_lock import is_locked, locked
from bnlab.studies.grid import Run
from bnlab.studies.results import epochs_begun, of_failed_run, read_result, write_result
from bnlab.studies.worker import TAKEN, Ended, make_task

_POLL_S = 0.1
_ELSEWHERE_S = 1.0  # between two looks at runs that another study works on


class Running(NamedTuple):
    """A run that works, since when (`time.monotonic`), and the epochs that it had begun before."""

    run: Run
    since: float
    epochs_before: int


@dataclass
class State:
    """The runs of a study: each is waiting, running, or has its result."""

    folder: Path  # the study's
    waiting: list[Run]  # runs that wait
    running: dict[str, Running] = field(default_factory=dict)  # runs that work, by name
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # result.json of the others, by the run's name
    elsewhere: set[str] = field(default_factory=set)  # names of those among the waiting that another process works on
    before: dict[str, dict[str, Any]] = field(default_factory=dict)  # failures that are tried again

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


class Engine(Protocol):
    """What starts runs and tells when they have ended."""

    name: str  # what `--engine` calls it
    jobs: int  # how many runs at once
    threads: int  # of each

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

    def ended(self, state: State, run: Run) -> None:
        """Take note of a run that has its result."""

    def tick(self, state: State) -> None:
        """Look at the study; called several times a second."""


def run_study(state: State, engine: Engine, watcher: Watcher) -> None:
    """Run what waits, until nothing does.

    A run that another process works on is left to it and looked at again, so two studies over the same folder share
    the work and both end when all is done. Whatever ends this function ends the runs that are working.
    """
    next_look = 0.0
    try:
        while state.waiting or state.running:
            if engine.free and time.monotonic() >= next_look:
                _start_some(state, engine, watcher)
                next_look = time.monotonic() + (_ELSEWHERE_S if state.elsewhere else 0.0)
            for ended in engine.ended():
                run = _take(state, engine, ended)
                if run.name in state.results:
                    watcher.ended(state, run)
            watcher.tick(state)
            time.sleep(_POLL_S)
    finally:
        engine.stop()


def _start_some(state: State, engine: Engine, watcher: Watcher) -> None:
    """Start waiting runs while there is room, and sort out those that another process works on or has ended."""
    state.elsewhere.clear()
    for run in list(state.waiting):
        if not engine.free:
            return
        folder = state.folder / run.name
        result = _new_result(state, run)
        if is_locked(folder):
            state.elsewhere.add(run.name)
            continue
        state.waiting.remove(run)
        if result is not None:
            state.results[run.name] = result
            watcher.ended(state, run)
        else:
            state.running[run.name] = Running(run, time.monotonic(), epochs_begun(folder))
            engine.start(run.name, _task(state, engine, run))
            watcher.started(run)


def _take(state: State, engine: Engine, ended: Ended) -> Run:
    """Take in a run whose process has ended: its result, written here if it could not be; or it waits once more."""
    run = state.running.pop(ended.name).run
    folder = state.folder / run.name
    if ended.status != TAKEN and _new_result(state, run) is None:
        with locked(folder) as held:
            if held:
                write_result(folder, of_failed_run(folder, _task(state, engine, run), ended.status, ended.reason))
    result = _new_result(state, run)
    if result is None:
        state.waiting.append(run)
    else:
        state.results[run.name] = result
    return run


def _new_result(state: State, run: Run) -> dict[str, Any] | None:
    """The run's result, unless it is the failure that is tried again."""
    result = read_result(state.folder / run.name)
    return None if result == state.before.get(run.name) else result


def _task(state: State, engine: Engine, run: Run) -> dict[str, Any]:
    how = {"engine": engine.name, "jobs": engine.jobs, "threads": engine.threads}
    return make_task(run, state.folder, how)
