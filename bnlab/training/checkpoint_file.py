"""Checkpoint files that a kill, a full disk or a power cut cannot spoil, and the choice of one to go on from."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

PREVIOUS = "previous.ckpt"

RUN_STATE = "bnlab"
"""Key in a checkpoint: what an exact continuation needs beside Lightning's own."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint whole or not at all, and keeps the one that it takes the place of as `previous.ckpt`.

    The new file is written beside the old one, brought to the disk, and then renamed. The one before costs no second
    write: it gets another name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint to a local `path`; other places (`s3://…`) are left to Lightning."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(target, lambda file: torch.save(checkpoint, file), keep_as=target.with_name(PREVIOUS))


def replace_durably(path: Path, write: Callable[[Any], None], keep_as: Path | None = None) -> None:
    """Have `write` fill a binary file beside `path`, bring it to the disk, and put it in the place of `path`.

    Args:
        path: the file.
        write: is given the open file.
        keep_as: what the file that was there is called from now on; None lets go of it.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.is_file():
            _keep(path, keep_as)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    sync(path.parent)


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, in one step; where the file system has no hard links, move it there."""
    link = name.with_name(f".{name.name}.{os.getpid()}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        link = path
    os.replace(link, name)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class UnusableCheckpointError(Exception):
    """A file that no run can go on from; the message says why."""


class GoodCheckpoint(NamedTuple):
    """A checkpoint that was read in full and is sound."""

    path: Path
    state: dict[str, Any]  # what is stored under RUN_STATE
    epoch: int  # epochs that were finished
    step: int  # optimizer steps


def read_good(path: Path) -> GoodCheckpoint:
    """Read a checkpoint that a run can go on from, without running code from it.

    Raises:
        UnusableCheckpointError: it is truncated, changed, no checkpoint, or holds weights only.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch does not check the sums of large tensors
        if damaged is not None:
            raise UnusableCheckpointError(f"its part {damaged} is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnusableCheckpointError:
        raise
    except Exception as error:
        raise UnusableCheckpointError(f"it cannot be read ({type(error).__name__}: {str(error)[:120]})") from error
    if not isinstance(content, dict) or RUN_STATE not in content:
        raise UnusableCheckpointError(
            "it does not hold all that a run needs to go on (weights only, or another program's)"
        )
    state = content[RUN_STATE]
    return GoodCheckpoint(path, state, state["epochs"], content["global_step"])


def last_good(folder: Path, say: Callable[[str], None]) -> GoodCheckpoint | None:
    """The newest sound checkpoint in a folder, None without any; `say` is told of every newer one that is not."""
    for path in _newest_first(folder):
        try:
            return read_good(path)
        except UnusableCheckpointError as reason:
            say(f"{path} is left out: {reason}.")
    return None


def _newest_first(folder: Path) -> Iterator[Path]:
    files = [path for path in folder.glob("*.ckpt") if not path.name.startswith(".")]
    yield from sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name != PREVIOUS), reverse=True)
