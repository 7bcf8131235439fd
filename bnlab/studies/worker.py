"""The process of one run: it works under the run's lock, ends with the study, and writes the result last."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from bnlab.studies.lock import locked
from bnlab.studies.results import FILE, of_ended_run, read_result, write_result
from bnlab.studies.tasks import OK, TAKEN

FitAndTest = Callable[[Path, list[str]], Mapping[str, float]]
"""Trains, or goes on with training, in a folder, with the words of `bnlab fit`; returns the test's metrics."""


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
