"""An empty current folder for every test here, and runs that many of them begin with."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.helpers.empty_folder import empty_folder
from tests.resuming.resumed import WATCHED, broken_off, snapshots

__all__ = ["empty_folder"]


@contextmanager
def one_thread_for_a_session() -> Iterator[None]:
    """As the fixture `one_thread`, which is one test's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def watched_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an undisturbed run, `whole`, and what a kill after 21 of its batches would have left, `21`."""
    folder = tmp_path_factory.mktemp("watched")
    with one_thread_for_a_session():
        snapshots(folder / "whole", folder, *WATCHED, batches={21})
    return folder


@pytest.fixture
def whole(watched_runs: Path) -> Path:
    """The undisturbed run; not to be changed."""
    return watched_runs / "whole"


@pytest.fixture
def left(watched_runs: Path) -> Path:
    """A copy of the run that was killed in its third epoch."""
    return Path(shutil.copytree(watched_runs / "21", "left"))


@pytest.fixture(scope="session")
def broken_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that an exception ended in the second of its two epochs."""
    folder = tmp_path_factory.mktemp("broken") / "run"
    with one_thread_for_a_session():
        broken_off("--run_folder", str(folder))
    return folder


@pytest.fixture
def broken(broken_run: Path) -> Path:
    """A copy of it in the current folder, as `run`."""
    return Path(shutil.copytree(broken_run, "run"))
