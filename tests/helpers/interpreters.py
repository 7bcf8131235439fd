"""An interpreter that has imported what it is told and nothing else; programs run in forks of it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_SERVER = """
import gc, importlib, json, os, sys, traceback

gc.disable()  # until all is imported
for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()
gc.enable()
print("ready", flush=True)
for line in sys.stdin:
    told = json.loads(line)
    process = os.fork()
    if process == 0:
        status = 0
        try:
            os.dup2(os.open(told["file"], os.O_WRONLY), 1)
            os.dup2(1, 2)
            os.chdir(told["folder"])
            os.environ.update(told["variables"])
            sys.argv[1:] = told["words"]
            sys.path[:0] = told["paths"]
            exec(compile(told["code"], "program", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
os._exit(0)  # the ordinary end takes a second
"""


class Interpreter:
    """Imports modules once, and runs programs that begin where it has imported them.

    Args:
        imported: the modules' names.
        options: the interpreter's own, such as `-W`.
    """

    def __init__(self, *imported: str, options: Sequence[str] = ()) -> None:
        self._server = subprocess.Popen(
            [sys.executable, *options, "-c", _SERVER, *imported],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def __enter__(self) -> "Interpreter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(20)
        self._server.stdout.close()

    def run(
        self, code: str, *words: str, folder: Path, paths: Sequence[Path], variables: dict[str, str] | None = None
    ) -> str:
        """What a program prints; an error if it does not end well.

        Args:
            code: the program.
            words: its arguments.
            folder: its current folder.
            paths: where it finds modules, before all other places.
            variables: more environment variables.
        """
        with tempfile.NamedTemporaryFile("r") as file:
            told = {"code": code, "words": words, "folder": str(folder), "paths": list(map(str, paths))}
            told |= {"variables": variables or {}, "file": file.name}
            assert self._server.stdin is not None
            self._server.stdin.write(f"{json.dumps(told)}\n")
            self._server.stdin.flush()
            status = self._answer()
            output = file.read()
        assert status == "0", output
        return output

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()
