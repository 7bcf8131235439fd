"""One run of a study in a process of its own: `bnlab fit`, then `bnlab test` of the last epoch's model.

The study starts it as `python -m bnlab.cli.study_run TASK`, TASK being what `bnlab.studies.tasks.task` makes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from bnlab.studies.lock import locked
from bnlab.studies.results import FILE, of_ended_run, read_result, write_result
from bnlab.studies.tasks import OK, TAKEN


def main(words: list[str]) -> int:
    """Work on a task unless another process does or it is done; returns the process's status."""
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


def fit_and_test(folder: Path, words: list[str]) -> dict[str, float]:
    """Train, or go on with training, in the run's folder; returns the test's metrics."""
    from bnlab.cli.commands import run

    sys.argv = ["bnlab", *words]  # what run.yaml calls the command
    quiet = ["--trainer.enable_progress_bar", "false"]
    run([words[0], *quiet, *words[1:], "--run_folder", str(folder), "--resume"])
    test = run(["test", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), *quiet])
    return {name: float(value) for name, value in test.trainer.callback_metrics.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
