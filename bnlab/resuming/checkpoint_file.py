"""Checkpoint files that a kill, a full disk or a power cut cannot spoil, and the search for one to resume from."""

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from bnlab.files.durable_files import replace_durably

PREVIOUS = "previous.ckpt"

RUN_STATE = "bnlab"
"""Key in a checkpoint: what an exact continuation needs beside Lightning's own."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint whole or not at all, and keeps the one that it takes the place of as `previous.ckpt`.

    The new file is written beside the old one, brought to the disk, and then renamed. The one before costs no second
    write: it gets another name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint to a local `path`; other places (`s3://…`) are left to Lightning.

        Raises:
            OSError: the disk is full, or the like; what was there is left as it was.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # written to a file directly, PyTorch's own complaint would hide that the disk is full
        torch.save(checkpoint, content)
        replace_durably(target, lambda file: file.write(content.getbuffer()), keep_as=target.with_name(PREVIOUS))


class DamagedError(Exception):
    """A file that is no sound checkpoint; the message says why."""


class GoodCheckpoint(NamedTuple):
    """A checkpoint that is sound, and holds all that a run needs to resume exactly."""

    path: Path
    state: dict[str, Any]  # what is stored under RUN_STATE
    epoch: int  # epochs that were finished
    step: int  # optimizer steps


class Search(NamedTuple):
    """What a search for a checkpoint found."""

    best: GoodCheckpoint | None
    damaged: list[Path]  # newer ones that no run can resume from


def find_checkpoint(folder: Path, say: Callable[[str], None]) -> Search:
    """The sound checkpoint of the latest step in a folder; `say` is told of every file that is left out, and why.

    Files are read without running code from them.
    """
    candidates, damaged = [], []
    for path in folder.glob("*.ckpt"):
        try:
            found = _look_into(path)
        except DamagedError as reason:
            say(f"{path} is left out: {reason}.")
            damaged.append(path)
            continue
        if found is None:
            say(f"{path} is left out: it holds weights only, or comes from another program.")
        else:
            candidates.append(found)
    for found in sorted(candidates, key=lambda each: (each.step, each.path.name != PREVIOUS), reverse=True):
        try:
            check_sums(found.path)
        except DamagedError as reason:
            say(f"{found.path} is left out: {reason}.")
            damaged.append(found.path)
        else:
            return Search(found, damaged)
    return Search(None, damaged)


def set_aside(damaged: list[Path]) -> None:
    """Rename damaged checkpoints to `<name>.damaged`, where they neither are found nor take a sound one's place."""
    for path in damaged:
        os.replace(path, path.with_name(f"{path.name}.damaged"))


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a checkpoint; whatever goes wrong while it is read, it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except Exception as error:
        raise DamagedError(f"it cannot be read ({type(error).__name__}: {str(error)[:80]})") from error


def _look_into(path: Path) -> GoodCheckpoint | None:
    """What a checkpoint says of itself, without reading its large tensors; None where it is of another kind."""
    with _archive(path) as archive:
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                archive.read(name)  # which checks its sum
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state = content.get(RUN_STATE) if isinstance(content, dict) else None
    if state is None:
        return None
    whole = isinstance(state, dict) and isinstance(state.get("files"), dict)
    if not whole or not all(type(state.get(name)) is int for name in ("epochs", "steps")):
        raise DamagedError("it does not say where its run stood")
    return GoodCheckpoint(path, state, state["epochs"], state["steps"])


def check_sums(path: Path) -> None:
    """Compare all of a checkpoint with its checksums, which PyTorch does not do for large tensors.

    Raises:
        DamagedError: it is no checkpoint, or something in it is not what was written.
    """
    with _archive(path) as archive:
        part = archive.testzip()
    if part is not None:
        raise DamagedError(f"its part {part} is damaged")
