"""The lock on a run's folder."""

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from bnlab.cli.run_folder import lock_run
from bnlab.errors import InputError
from bnlab.files.run_lock import FILE, RunLock, is_locked, locked
from tests.helpers.locked_elsewhere import locked_elsewhere


def test_one_process_at_a_time_has_it_and_a_kill_lets_go_of_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert not is_locked(run)
    assert not run.exists()
    with locked_elsewhere(run), locked(run) as held:
        assert not held
    assert not is_locked(run)
    with locked(run) as held:
        assert held
    assert [path.name for path in run.iterdir()] == [FILE]  # two processes must never lock two files


def test_a_process_may_take_it_again_and_holds_it_until_the_last_release(tmp_path: Path) -> None:
    """A study's worker holds it while `bnlab fit`, in the same process, takes it too."""
    outer, inner = RunLock(tmp_path), RunLock(tmp_path)
    assert outer.acquire()
    assert inner.acquire()
    for _ in range(2):
        inner.release()
    assert _taken_for_others(tmp_path)
    outer.release()
    assert not _taken_for_others(tmp_path)


def _taken_for_others(folder: Path) -> bool:
    with (folder / FILE).open("r+b") as file:  # a descriptor of its own, as in another process
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_bars_nobodys_way(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path) as held:
        assert held
        assert not is_locked(tmp_path)


def test_a_lock_that_cannot_be_opened_is_an_error_for_who_takes_it(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    assert not is_locked(tmp_path)
    with pytest.raises(OSError, match="directory"):
        RunLock(tmp_path).acquire()
    with pytest.raises(InputError, match=r"--run_folder .* cannot be written"):
        lock_run(tmp_path)
