"""A run that is killed again and again and resumed each time, compared with an undisturbed one.

    python -m benchmarks.kill_fit --kills 10 --signal SIGKILL [--seed 0] [flags of bnlab fit]

The run: the MLP with dropout and batch norm on the digits, 50 epochs of 9 steps, gradients recorded at every step. One
kill of five comes while the process starts, the others up to half a second after its first new checkpoint. The
temporary folder is printed and kept.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from bnlab.resuming.checkpoint_file import find_checkpoint
from tests.helpers.command_line import finish, read_yaml, start
from tests.resuming.resumed import FIT, WATCHED, checkpoint, dead_units, events, rows

LONGER = (*WATCHED, "--trainer.max_epochs", "50", "--early_stopping.patience", "200")


def main() -> None:
    """Print a line for each kill, then what is missing, double or different in the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--signal", default="SIGKILL", choices=["SIGKILL", "SIGTERM", "SIGINT"])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options, words = parser.parse_known_args()
    moments, number = random.Random(options.seed), signal.Signals[options.signal]
    folder = Path(tempfile.mkdtemp(prefix="kill_fit_"))
    print(f"{folder}: {options.kills} x {number.name}, {' '.join(words)}")
    assert run_to_end(folder, "whole", words) == 0
    for kill in range(options.kills):
        process = go_on(folder, "run", words)
        if kill % 5 == 2:
            time.sleep(moments.uniform(0, 6))
        else:
            wait_for_a_checkpoint(folder / "run/checkpoints/last.ckpt", process)
            time.sleep(moments.uniform(0, 0.5))
        process.send_signal(number)
        status = finish(process)[0]
        best = find_checkpoint(folder / "run/checkpoints", print).best
        print(
            f"kill {kill + 1:2}: status {status:4}, {'no checkpoint' if best is None else f'step {best.step}'}",
            flush=True,
        )
    print(f"the last go: status {run_to_end(folder, 'run', words)}")
    report(folder / "whole", folder / "run")


def go_on(folder: Path, name: str, words: list[str]) -> subprocess.Popen[str]:
    """Start the process."""
    return start(*FIT, *LONGER, *words, "--run_folder", name, "--resume", folder=folder)


def wait_for_a_checkpoint(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the process has written its first one."""

    def written() -> int:
        return path.stat().st_mtime_ns if path.exists() else 0

    before = written()
    while written() == before and process.poll() is None:
        time.sleep(0.002)


def run_to_end(folder: Path, name: str, words: list[str]) -> int:
    """The status of a run that nobody disturbs."""
    return finish(go_on(folder, name, words), timeout=3600)[0]


def report(whole: Path, run: Path) -> None:
    """What is not the same."""
    for what, read in (("scalars in event files", events), ("rows of records.csv", rows)):
        expected, found = read(whole), read(run)
        missing, extra = (expected - found).total(), (found - expected).total()
        print(f"{what}: {expected.total()}, missing {missing}, double or different {extra}")
    expected, found = checkpoint(whole), checkpoint(run)
    different = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    print(f"entries of the last checkpoint: {len(expected)}, different {len(different)} {different[:5]}")
    print(f"dead_units.csv: {'the same' if dead_units(whole) == dead_units(run) else 'different'}")
    record = read_yaml(run / "run.yaml")
    print(f"outcome: {record['outcome']}, {len(record.get('resumed', []))} resumptions in run.yaml")


if __name__ == "__main__":
    main()
