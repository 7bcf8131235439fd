"""The record of code, packages and machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

from bnlab.training import provenance
from bnlab.training.provenance import git_state, hardware, versions


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with one commit, in which provenance.py believes to lie, in a folder."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # set where a git hook runs the tests
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    repository = tmp_path / "repository"
    (repository / "code").mkdir(parents=True)
    git(repository, "init", "--quiet")
    (repository / "code" / "provenance.py").write_text("one\n")
    (repository / "other.txt").write_text("one\n")
    git(repository, "add", "--all")
    commit(repository)
    monkeypatch.setattr(provenance, "__file__", str(repository / "code" / "provenance.py"))
    return repository


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(repository: Path) -> None:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    git(repository, *who, "commit", "--quiet", "--all", "--message", "a change")


def test_a_clean_checkout_is_its_commit(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    assert len(first) == 40
    assert git_state() == {"commit": first, "dirty": False}
    (repository / "other.txt").write_text("two\n")
    commit(repository)
    second = git(repository, "rev-parse", "HEAD")
    assert second != first
    assert git_state() == {"commit": second, "dirty": False}


def test_a_change_anywhere_in_the_checkout_makes_it_dirty(repository: Path) -> None:
    """Untracked files (logs, notes) do not."""
    (repository / "untracked.txt").write_text("")
    state = git_state()
    assert state is not None
    assert state["dirty"] is False
    (repository / "other.txt").write_text("two\n")
    state = git_state()
    assert state is not None
    assert state["dirty"] is True


def test_code_that_is_not_the_repositorys_has_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package in a virtual environment within some checkout."""
    (repository / ".venv").mkdir()
    (repository / ".venv" / "provenance.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(repository / ".venv" / "provenance.py"))
    assert git_state() is None


def test_outside_of_any_repository_there_is_no_commit(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert git_state() is None


def test_without_git_there_is_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert git_state() is None


def test_a_checkout_whose_changes_cannot_be_told_is_not_called_clean(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`git status` takes minutes in a vast repository on a slow disk."""
    run = subprocess.run

    def slow(command: list[str], **options: object) -> object:
        if "status" in command:
            raise subprocess.TimeoutExpired(command, 10)
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", slow)
    assert git_state() == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": None}


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert list(found) == [
        "python",
        "bnlab",
        "torch",
        "torchvision",
        "lightning",
        "torchmetrics",
        "tensorboard",
        "numpy",
    ]
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert torch.__version__.startswith(str(found["torch"]).partition("+")[0])

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert versions() == dict.fromkeys(found) | {"python": platform.python_version()}


def test_the_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = hardware(torch.device("cpu"), 2)
    assert found == {
        "device": "cpu",
        "name": found["name"],
        "ranks": 2,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    assert found["name"]

    monkeypatch.setattr(Path, "read_text", lambda path: "processor\t: 0\nmodel name\t: Some CPU: fast\nflags\t: fpu\n")
    assert hardware(torch.device("cpu"), 1)["name"] == "Some CPU: fast"
    monkeypatch.setattr(Path, "read_text", lambda path: "processor\t: 0\nCPU part\t: 0xd0c\n")  # as ARM has it
    assert hardware(torch.device("cpu"), 1)["name"] == platform.machine()
