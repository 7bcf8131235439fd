"""Studies of stub runs in processes of their own, and what their runs' folders tell."""

import subprocess
import sys
from pathlib import Path

from tests.studies.real_study import PROJECT, heed_ctrl_c


def total_after(seed: int, steps: int) -> int:
    """What a stub run of so many steps ends with."""
    total = seed
    for step in range(steps):
        total = (total * 3 + step) % 1_000_003
    return total


def lines(folder: Path, name: str) -> dict[str, list[str]]:
    """The lines of a file in each run's folder, by the variant."""
    return {path.parent.name: path.read_text().split() for path in sorted(folder.glob(f"*/*/{name}"))}


def start(folder: Path, jobs: int, seeds: int, steps: int, engine: str = "local") -> "subprocess.Popen[bytes]":
    """A study in a process of its own."""
    words = [str(folder), str(jobs), str(seeds), str(steps), engine]
    command = [sys.executable, "-m", "tests.studies.stub_study", *words]
    return subprocess.Popen(command, cwd=PROJECT, preexec_fn=heed_ctrl_c)


def pids(folder: Path) -> list[int]:
    """Every process that has worked on a run."""
    return [int(pid) for found in lines(folder, "starts.txt").values() for pid in found]
