"""One process at a time works on a run: a lock on `run.lock` that the system releases when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a run's lock, without waiting for it; False where another process has it.

    The folder is made where it is missing. The file stays, since removing it would let two processes lock two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process works on the run right now."""
    if not (folder / FILE).exists():
        return False
    with locked(folder) as held:
        return not held


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # some network file systems have no locks: one study at a time is then up to the user
        return error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
    return True
