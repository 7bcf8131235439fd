"""The ways in which a file can be broken or hostile, and what must hold afterwards."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bnlab.cli.main import main

MARKER = "executed"
NOBODY = 65534

Damage = Callable[[Path], None]


class Hostile:
    """Makes unpickling visible: it makes the folder MARKER in the current folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARKER,)


def rewrite(path: Path, content: bytes) -> None:
    """Replace a file, not through a hard link."""
    path.unlink()
    path.write_bytes(content)


def truncated(share: float) -> Damage:
    """Cut a file; 1.0 cuts its last byte."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        rewrite(path, content[: min(int(len(content) * share), len(content) - 1)])

    return damage


def flipped(share: float) -> Damage:
    """Flip the lowest bit of one byte."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[min(int(len(content) * share), len(content) - 1)] ^= 1
        rewrite(path, bytes(content))

    return damage


def filled(content: bytes) -> Damage:
    """Put something else into a file."""
    return lambda path: rewrite(path, content)


def folder(path: Path) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def remove(path: Path) -> None:
    """Take away what a damage left."""
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()


def hostile(path: Path) -> None:
    """Put a pickle in its place that runs code."""
    rewrite(path, pickle.dumps(Hostile()))


def hostile_yaml(path: Path) -> None:
    """YAML's own way to run code."""
    rewrite(path, f"a: !!python/object/apply:os.mkdir [{MARKER}]\n".encode())


# nine lists, each of nine times the one before
MULTIPLIED = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 10))

DAMAGE: dict[str, Damage] = {
    "empty": filled(b""),
    **{f"truncated to {share}": truncated(share) for share in (0.02, 0.3, 0.7, 1.0)},
    "noise": filled(bytes(range(256)) * 8),
    "a list": filled(b"[1, 2]\n"),
    "a number": filled(b"7\n"),
    "nested deep": filled(b"[" * 3_000),
    "aliases that multiply": filled(MULTIPLIED.encode()),
    "another mapping": filled(b'{"a": {"b": 1}, "outcome": 5, "schema": 1, "model": 3}\n'),
    "folder": folder,
    "pickle with code": hostile,
    "YAML with code": hostile_yaml,
}
FLIPS: dict[str, Damage] = {f"flipped at {share}": flipped(share) for share in (0.0, 0.1, 0.35, 0.6, 0.85, 1.0)}


def tree() -> dict[str, bytes]:
    """All files below the current folder, with what is in them."""
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """Run a command: its one message where it refuses, None where it goes well.

    It runs no code of a file, leaves nothing where it refuses, and never ends in another way.
    """
    before = tree()
    capsys.readouterr()
    try:
        main(words)
    except SystemExit as stopped:
        error = capsys.readouterr().err
        assert stopped.code == 2, error  # noqa: PT017 - both ways out are right
        told = [line for line in error.splitlines() if line.startswith("bnlab: error:")]
        assert len(told) == 1, error
        assert "Traceback" not in error
        assert tree() == before
        return error
    finally:
        assert not Path(MARKER).exists()
    return None


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Take away the right to read a file; root gives itself up meanwhile, since it may read everything."""
    path.chmod(0)
    root = os.geteuid() == 0
    parents = [each for each in path.resolve().parents if each.stat().st_mode & 0o005 != 0o005] if root else []
    modes = [(each, each.stat().st_mode) for each in parents]
    for each in parents:
        each.chmod(0o755)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for each, mode in modes:
            each.chmod(mode)
        path.chmod(0o644)
