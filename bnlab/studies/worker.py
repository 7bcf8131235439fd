"""The process of one run: the task that the study gives it, and how it works on that and tells its end."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bnlab.files.run_lock import locked
from bnlab.studies.grid import Run
from bnlab.studies.results import FILE, LOG, of_ended_run, read_result, write_result

# exit statuses of a worker, beside 0 for a run that has its result; any other is a failure
OK, TAKEN = 0, 75  # 75: another process works on the run (EX_TEMPFAIL of sysexits.h)


class Ended(NamedTuple):
    """A run's process has ended: the run's name, its status, negative for a signal, and why if that is known."""

    name: str
    status: int
    reason: str = ""


def make_task(run: Run, study_folder: Path, study: Mapping[str, Any]) -> dict[str, Any]:
    """One run for a worker, as primitives; `study` is for the result's provenance: engine, jobs, threads of each."""
    return {
        "folder": str(study_folder / run.name),
        "words": run.words,
        "identity": run.identity,
        "study": dict(study),
    }


def start(
    module: str, task: Mapping[str, Any], variables: Mapping[str, str], place: Path = Path()
) -> subprocess.Popen[bytes]:
    """Start a worker, a module of the command line, on a task of `make_task`, with more environment variables.

    It ends when its standard input does, which is when this process dies, however it does.
    """
    folder = place / task["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(task)],
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            # Ctrl-C reaches the study alone, which then ends its runs
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )


FitAndTest = Callable[[Path, list[str]], Mapping[str, float]]
"""Trains in a folder, resuming where it can, with the words of `bnlab fit`; returns the test's metrics."""


def work_on(words: list[str], fit_and_test: FitAndTest) -> int:
    """Work on the task in a process's words, unless another process does or it is done; returns the process's status.

    An exception is the run's failure: it goes to the log, and the study writes the result.
    """
    task = json.loads(words[0])
    folder = Path(task["folder"])
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    with locked(folder) as held:
        if not held:
            return TAKEN
        result = read_result(folder)
        if result is not None and result["outcome"]["status"] != "failed":
            return OK
        (folder / FILE).unlink(missing_ok=True)  # of a failure that is tried again
        tested = fit_and_test(folder, task["words"])
        write_result(folder, of_ended_run(folder, task, tested))
    return OK


def _end_with_the_study() -> None:
    """End this process when its standard input ends: the system closes it when the study dies, however it dies."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)
