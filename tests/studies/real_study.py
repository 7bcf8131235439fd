"""Running `bnlab study` on the digits: in this process, or in one of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.cli.main import main
from bnlab.studies.results import LOG
from tests.helpers.warm_processes import WarmProcess

PROJECT = Path(__file__).parents[2]
PATHS = os.pathsep.join([str(PROJECT), str(PROJECT / "callbacks")])
CPU = ("--trainer.accelerator", "cpu")
_VARIABLES = {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}


@contextmanager
def folder_for_a_study(folder: Path) -> Iterator[Path]:
    """Make a folder the current one, and let workers find the tests' modules.

    Workers of this process's studies begin with everything imported; the stub studies start theirs as users' do.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", PATHS)
        patch.setattr("bnlab.studies.local_engine.start", start_worker)
        yield folder


def start_worker(module: str, task: Mapping[str, Any], variables: Mapping[str, str]) -> WarmProcess:
    """As `bnlab.studies.worker.start`."""
    log = Path(task["folder"]) / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    return WarmProcess([json.dumps(task)], Path.cwd(), os.environ | variables, module, log)


def write_config(name: str, **sections: Any) -> str:
    """A config file in the current folder; returns its path."""
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump(sections))
    return str(path)


def study(*words: str) -> int:
    """`bnlab study` in this process; returns its exit status."""
    try:
        main(["study", *words])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def start(*words: str, folder: Path, output: Any = subprocess.DEVNULL) -> "subprocess.Popen[str]":
    """`bnlab study` in an interpreter of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "bnlab", "study", *words],
        cwd=folder,
        env={**os.environ, **_VARIABLES},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_ctrl_c,
    )


def start_warm(*words: str, folder: Path) -> WarmProcess:
    """`bnlab study` in a process of its own with everything imported; it starts its workers as users' studies do."""
    return WarmProcess(["study", *words], folder, {**os.environ, **_VARIABLES})


def heed_ctrl_c() -> None:
    """A shell's background jobs ignore SIGINT, and hand that on to what they start, such as these tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
