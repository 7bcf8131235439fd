"""What a run in a process of its own hands back to the process that started it.

`ddp_spawn`, `ddp_fork` and `ddp_notebook` train in child processes, on copies of the callbacks; Lightning brings back
weights and `callback_metrics`, and has no public way for anything else. So a file takes the rest, in the folder for
temporary files, as Lightning's own does for the weights.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any
from uuid import uuid4

from bnlab_callbacks.core.files import replace_file


class Handover:
    """The way from a child process's copy of an object to the object itself, which holds this."""

    def __init__(self) -> None:
        self._home = os.getpid()
        self._file = Path(tempfile.gettempdir()) / f"bnlab_callbacks-{uuid4().hex}.json"
        weakref.finalize(self, _remove, self._file, self._home)

    def __deepcopy__(self, memo: object) -> Handover:
        return Handover()

    def leave(self, content: dict[str, Any]) -> None:
        """Leave something for the object itself, where this is its copy in a child of its process; else do nothing.

        Args:
            content: of lists, texts and numbers.
        """
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid == self._home != os.getpid():
            replace_file(self._file, lambda file: _write(file, json.dumps(content)))

    def take(self) -> dict[str, Any] | None:
        """What a copy has left since the last call; None for nothing."""
        if os.getpid() != self._home or not self._file.exists():
            return None
        content: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        self._file.unlink()
        return content


def _write(file: Path, text: str) -> None:
    with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)


def _remove(file: Path, home: int) -> None:
    if os.getpid() == home:  # not where a copy goes
        file.unlink(missing_ok=True)
