"""A study of eight short runs, killed at ten random moments, compared with an undisturbed one.

    python -m benchmarks.kill_study [--kills 10] [--seed 0] [--epochs 60] [--engine local]

Runs on the digits, on the CPU, in a temporary folder; the study that is killed is started again each time. Prints when
it was killed, how often each run went on, and whether results, records and weights are the same, bit for bit. Ends with
status 1 if they are not.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.studies.equal_studies import numbers_of
from tests.studies.real_study import CPU, folder_for_a_study, start

# with and without batch norm; dropout draws random numbers at each step, init_high diverges
CONFIGS = ("mlp_relu", "mlp_dropout", "mlp_init_high", "mlp_sigmoid")


def main() -> int:
    """Run both studies; returns the process's status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--engine", default="local")
    arguments = parser.parse_args()
    words = ["--configs", *CONFIGS, "--trainer.max_epochs", str(arguments.epochs), "--jobs", "2", *CPU]
    words += ["--trainer.log_every_n_steps", "5", "--early_stopping.patience", "60", "--engine", arguments.engine]
    with tempfile.TemporaryDirectory() as temporary, folder_for_a_study(Path(temporary)) as folder:
        begin = time.perf_counter()
        to_the_end(*words, "--name", "undisturbed", folder=folder)
        print(f"undisturbed: {time.perf_counter() - begin:.0f} s", flush=True)
        kill_often(words, folder, arguments.kills, random.Random(arguments.seed))
        to_the_end(*words, "--name", "killed", folder=folder)
        return compare(folder)


def to_the_end(*words: str, folder: Path) -> None:
    """Run a study undisturbed; where it fails, show what it printed."""
    study = start(*words, folder=folder, output=subprocess.PIPE)
    output, _ = study.communicate()
    if study.returncode:
        sys.exit(f"the study ended with status {study.returncode}:\n{output}")


def kill_often(words: list[str], folder: Path, kills: int, moments: random.Random) -> None:
    """Start the study and kill it, so often: now and then at any moment, mostly when a run is being trained."""
    for number in range(1, kills + 1):
        before = checkpoints(folder)
        begin = time.perf_counter()
        study = start(*words, "--name", "killed", folder=folder)
        if number % 3:
            while study.poll() is None and checkpoints(folder) == before:
                time.sleep(0.005)
            wait = moments.uniform(0, 8)
        else:
            wait = moments.uniform(0, 20)
        try:
            study.wait(wait)
            print(f"kill {number}: too late, it was done", flush=True)
        except subprocess.TimeoutExpired:
            study.kill()
            study.wait()
            done = len(list(folder.glob("tb_logs/killed/*/*/result.json")))
            moment = time.perf_counter() - begin
            begun = len(checkpoints(folder))
            print(f"kill {number} after {moment:.1f} s: {begun} runs have a checkpoint, {done} are done", flush=True)


def checkpoints(folder: Path) -> dict[Path, int]:
    """When each run's last checkpoint was written."""
    found = {}
    for path in folder.glob("tb_logs/killed/*/*/checkpoints/last.ckpt"):
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.stat().st_mtime_ns
    return found


def compare(folder: Path) -> int:
    """Tell what is equal; returns the process's status."""
    killed, whole = (numbers_of(folder / "tb_logs" / name) for name in ("killed", "undisturbed"))
    for name, numbers in whole.items():
        log = (folder / "tb_logs" / "killed" / name / "log.txt").read_text()
        went_on = log.count("goes on from")
        different = [key for key, value in numbers.items() if killed.get(name, {}).get(key) != value]
        verdict = f"DIFFERENT: {', '.join(different)}" if different else "equal bit for bit"
        print(f"{name}: {numbers['outcome']['status']}, went on {went_on} times, {verdict}")
    return 0 if killed == whole and len(whole) == 2 * len(CONFIGS) else 1


if __name__ == "__main__":
    sys.exit(main())
