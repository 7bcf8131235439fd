"""Studies of stub runs in processes of their own, what their runs' folders tell, and which processes there are."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def pids(folder: Path) -> list[int]:
    """Every process that has worked on a run."""
    return [int(pid) for found in lines(folder, "starts.txt").values() for pid in found]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    """The process that started another."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid: int) -> set[int]:
    """All processes that a process has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            children.setdefault(parent_of(int(path.name)), []).append(int(path.name))
        except OSError:  # ended meanwhile
            continue
    found, new = set(), {pid}
    while new:
        new = {child for parent in new for child in children.get(parent, [])}
        found |= new
    return found


def command_of(pid: int) -> bytes:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # ended meanwhile
        return b""
