"""Processes of `bnlab` that begin with everything imported: five seconds less for each than an interpreter of its own.

They are forked from a server that has imported, and nothing else; each is a process of its own, with its own signals.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["bnlab.cli.commands", "sklearn.datasets", "torch.utils.tensorboard"])


class WarmProcess:
    """The part of `subprocess.Popen` that tests use, of `python -m bnlab WORDS` within a folder."""

    def __init__(self, words: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        handles, names = zip(*(tempfile.mkstemp() for _ in range(2)), strict=True)
        for handle in handles:
            os.close(handle)
        self._streams = [Path(name) for name in names]
        self._process: BaseProcess = _FORKS.Process(
            target=_run, args=(list(words), str(folder), environment, *map(str, self._streams))
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The status; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The status; None while it runs."""
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; standard output and standard error."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("bnlab", timeout or 0.0)
        output, errors = (stream.read_text() for stream in self._streams)
        return output, errors

    def kill(self) -> None:
        """End it, if it has not ended, and forget what it said."""
        self._process.kill()
        self._process.join()
        for stream in self._streams:
            stream.unlink(missing_ok=True)


def _run(words: list[str], folder: str, environment: dict[str, str], output: str, errors: str) -> None:
    """The forked process."""
    for stream, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_TRUNC), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["bnlab", *words]
    import torch  # here, so that a test process which starts none does not wait for it

    torch.set_num_threads(1)
    runpy.run_module("bnlab", run_name="__main__", alter_sys=True)
