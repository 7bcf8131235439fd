"""The lock on a run's folder: one process at a time works on a run."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

FILE = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # as some network file systems answer


class RunLock:
    """A lock on the file `run.lock` in a run's folder, which the system releases when its process dies.

    It belongs to the process, which may take it several times. The file stays: removing it would let two processes
    lock two files. On a file system without locks it is always free, and one process at a time is up to the user.

    Args:
        folder: the run's folder; it is made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.resolve() / FILE
        self._lock = FileLock(path, blocking=False, thread_local=False, is_singleton=True, fallback_to_soft=False)
        self._held = False

    def acquire(self) -> bool:
        """Take the lock, without waiting for it; False where another process has it.

        Raises:
            OSError: the file cannot be written.
        """
        try:
            self._lock.acquire()
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return True
        self._held = True
        return True

    def release(self) -> None:
        """Let others in."""
        if self._held:
            self._held = False
            self._lock.release()


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a run's lock, without waiting for it; False where another process has it."""
    lock = RunLock(folder)
    try:
        yield lock.acquire()
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether another process works on the run right now; a lock that cannot be opened bars only who takes it."""
    if not (folder / FILE).exists():
        return False
    try:
        with locked(folder) as held:
            return not held
    except OSError:
        return False
