"""Processes that begin with everything imported: five seconds less for each than an interpreter of its own.

They are forked from a server that has imported, and nothing else; each is a process of its own, with its own signals.
"""

import ctypes
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["tests.helpers.no_collector", "bnlab.cli.commands", "sklearn.datasets", "torch.utils.tensorboard"]
)


class WarmProcess:
    """The part of `subprocess.Popen` that tests and studies use, of `python -m MODULE WORDS` within a folder.

    Args:
        words: the program's arguments.
        folder: the process's current folder.
        environment: its environment variables, all of them.
        module: the program.
        log: a file to which it appends what it says; without one, `communicate` tells it.
        network: the file of a network namespace in which it lives.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        module: str = "bnlab",
        log: Path | None = None,
        network: Path | None = None,
    ) -> None:
        self._streams = [] if log else [_empty_file() for _ in range(2)]
        output, errors = [str(log.absolute())] * 2 if log else map(str, self._streams)
        told, self.stdin = _FORKS.Pipe(duplex=False)
        self._process: BaseProcess = _FORKS.Process(
            target=_run, args=(module, list(words), str(folder), dict(environment), told, output, errors, network)
        )
        self._process.start()
        told.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The status; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The status; None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the status."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("bnlab", timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; standard output and standard error."""
        self.wait(timeout)
        output, errors = (stream.read_text() for stream in self._streams)
        return output, errors

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it, if it has not ended, and forget what it said."""
        self._process.kill()
        self._process.join()
        self.stdin.close()
        for stream in self._streams:
            stream.unlink(missing_ok=True)


def environments_of_ranks(ranks: int) -> list[dict[str, str]]:
    """What a cluster's launcher tells each of so many ranks of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
    return [{**common, "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _empty_file() -> Path:
    handle, name = tempfile.mkstemp()
    os.close(handle)
    return Path(name)


def _run(
    module: str,
    words: list[str],
    folder: str,
    environment: dict[str, str],
    told: Connection,
    output: str,
    errors: str,
    network: Path | None,
) -> None:
    """The forked process."""
    gc.freeze()  # what was imported is not looked at again and again
    gc.enable()
    if network is not None:
        with network.open() as namespace:  # os.setns is there from Python 3.12 on
            assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
    os.dup2(told.fileno(), 0)
    told.close()
    sys.stdin = os.fdopen(0, closefd=False)
    for stream, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [module, *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs hand on that they ignore it
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type] # loaders start as they do elsewhere
    # here, so that a test process which starts none does not wait for it
    import torch
    from lightning_utilities.core.rank_zero import rank_zero_only

    torch.set_num_threads(1)
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", "0"))  # Lightning read it when the server imported it
    runpy.run_module(module, run_name="__main__", alter_sys=True)
