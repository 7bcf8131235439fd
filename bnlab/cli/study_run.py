"""One run of a study in a process of its own: `bnlab fit`, then `bnlab test` of the last epoch's model.

The study starts it as `python -m bnlab.cli.study_run TASK`, TASK being what `bnlab.studies.worker.make_task` makes.
"""

import sys
from pathlib import Path

from bnlab.studies.worker import work_on


def fit_and_test(folder: Path, words: list[str]) -> dict[str, float]:
    """Train in the run's folder, from its last checkpoint if there is one; returns the test's metrics."""
    from bnlab.cli.commands import run  # not before the run is known to be free: torch takes seconds

    sys.argv = ["bnlab", *words]  # what run.yaml calls the command
    quiet = ["--trainer.enable_progress_bar", "false"]
    run([words[0], *quiet, *words[1:], "--run_folder", str(folder), "--resume"])
    test = run(["test", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), *quiet])
    return {name: float(value) for name, value in test.trainer.callback_metrics.items()}


if __name__ == "__main__":
    sys.exit(work_on(sys.argv[1:], fit_and_test))
