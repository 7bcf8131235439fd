"""What a worker process is told, and how it tells its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bnlab.studies.grid import Run

# exit statuses of a worker, beside 0 for a run that has its result; any other is a failure
OK, TAKEN = 0, 75  # 75: another process works on the run (EX_TEMPFAIL of sysexits.h)


class Ended(NamedTuple):
    """A run's process has ended: the run's name, its status, negative for a signal, and why if that is known."""

    name: str
    status: int
    reason: str = ""


def task(run: Run, study_folder: Path, study: Mapping[str, Any]) -> dict[str, Any]:
    """One run for a worker, as primitives.

    Args:
        run: the run.
        study_folder: the study's folder.
        study: how the study runs, for the result's provenance: engine, jobs, threads of each job.
    """
    return {
        "folder": str(study_folder / run.name),
        "words": run.words,
        "identity": run.identity,
        "study": dict(study),
    }


def command(module: str, content: Mapping[str, Any]) -> list[str]:
    """The words that start a worker, a module of the command line, on a task."""
    return [sys.executable, "-m", module, json.dumps(content)]
