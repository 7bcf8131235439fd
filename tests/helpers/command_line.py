"""Running the command line in tests: in this process, which is fast, or in one of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch  # noqa: F401 - before any test: its log keeps the standard error of the moment, which tests replace
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnlab.cli.main import main
from tests.helpers.warm_processes import WarmProcess, environments_of_ranks

PROJECT = Path(__file__).parents[2]
CONFIGS = PROJECT / "configs"
QUIET = ("--trainer.enable_progress_bar", "false")
ON_CPU = ("--trainer.accelerator", "cpu")
BOUND_S = 60  # for a rank to end after another; seen on two busy cores: at most 11 s


def fit(*words: str, config: str = "mlp_relu") -> Path:
    """`bnlab fit` on the digits in the current folder; returns the run's folder."""
    before = run_folders()
    main(["fit", "--config", str(CONFIGS / f"{config}.yaml"), *ON_CPU, *QUIET, *words])
    (folder,) = run_folders() - before
    return folder


def run_folders() -> set[Path]:
    """Folders of all runs under the current folder."""
    return {path.parent for path in Path().glob("**/run.yaml")}


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file, without running code from it."""
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in a folder's event files: tag → (step, value) pairs."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


Process = subprocess.Popen[str] | WarmProcess


def start(*words: str, folder: Path) -> WarmProcess:
    """`bnlab` in a process of its own, within `folder`."""
    return WarmProcess(words, folder, _environment())


def start_ranks(*words: str, folder: Path, ranks: int = 2) -> list[WarmProcess]:
    """`bnlab` as the ranks of this machine, started one by one, as a cluster does: `start` leaves that to Lightning."""
    ddp = ("--trainer.strategy", "ddp", "--trainer.devices", str(ranks))
    return [WarmProcess((*words, *ddp), folder, _environment() | each) for each in environments_of_ranks(ranks)]


def start_node(
    *words: str, folder: Path, network: Path | None = None, variables: Mapping[str, str] | None = None
) -> WarmProcess:
    """`torchrun` with these words, maybe within a network namespace; it starts its ranks as users' do."""
    environment = {**_environment(), **(variables or {})}
    return WarmProcess(words, folder, environment, "torch.distributed.run", network=network)


def start_fresh(*words: str, folder: Path) -> subprocess.Popen[str]:
    """`bnlab` in an interpreter of its own."""
    command = [sys.executable, "-m", "bnlab", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=_environment(), stdout=pipe, stderr=pipe, text=True)


def _environment() -> dict[str, str]:
    paths = os.pathsep.join([str(PROJECT), str(PROJECT / "callbacks")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


class Ended(NamedTuple):
    """How a process ended: its status, standard output and standard error."""

    status: int
    output: str
    errors: str


def finish(process: Process, timeout: float = 120) -> Ended:
    """Wait for a process."""
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode is not None
    return Ended(process.returncode, output, errors)


def finish_ranks(processes: Sequence[Process], timeout: float = 120) -> list[Ended]:
    """Wait for all of them."""
    try:
        return [finish(process, timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()


def children_of(process: Process) -> list[int]:
    """The other ranks' processes."""
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    words = [line.split(maxsplit=2) for line in lines.splitlines()]
    return [int(one) for one, parent, arguments in words if parent == str(process.pid) and "bnlab" in arguments]


def lost_a_rank(errors: str) -> bool:
    """Whether a process says that it ended because another rank did."""
    return any(each in errors for each in ("Connection", "terminated with code -9", "reset by peer"))
