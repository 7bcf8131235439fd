"""Where a run lands: `<root>/<experiment>/<dataset>-<vanilla|bn>-seed<seed>/version_<k>`, and who works on it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from bnlab.errors import InputError
from bnlab.run_lock import RunLock
from bnlab.yaml_file import mapping_or_empty

_VERSION = re.compile(r"version_(\d+)")


def experiment_name(configs: Sequence[Path], fallback: str) -> str:
    """The config files' stems, joined by `+`; for a run's own config.yaml the name that its run had."""
    stems = [_stem(config) for config in configs]
    return "+".join(dict.fromkeys(stems)) or fallback


def _stem(config: Path) -> str:
    record = config.parent / "run.yaml"
    if config.name == "config.yaml" and record.is_file():
        name = mapping_or_empty(record).get("experiment")
        if isinstance(name, str) and name and Path(name).name == name:  # it becomes a folder's name
            return name
    return config.stem


def variant_name(dataset: str, batch_norm: bool, seed: int | bool | None) -> str:
    """`mnist-bn-seed0`; without the seed for a run that is not seeded."""
    norm = "bn" if batch_norm else "vanilla"
    return f"{dataset}-{norm}" + ("" if seed is None or seed is False else f"-seed{int(seed)}")


def make_next_version(parent: Path) -> Path:
    """Make the next free `version_<k>` in a variant's folder and return it; two processes at once get two folders.

    Raises:
        InputError: the folder cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission to write", str(parent))
        number = 0
        while True:
            try:
                (parent / f"version_{number}").mkdir()
                return parent / f"version_{number}"
            except FileExistsError:
                number += 1
    except OSError as error:
        raise InputError(
            f"the run's folder {parent}{os.sep} cannot be written ({error.strerror or error}); "
            "give another one with --trainer.default_root_dir."
        ) from error


def make_folder(folder: Path) -> Path:
    """Make a folder that was asked for by name, if it is not there, and return it.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission to write", str(folder))
    except OSError as error:
        raise _cannot_be_written(folder, error) from error
    return folder


def _cannot_be_written(folder: Path, error: OSError) -> InputError:
    return InputError(f"--run_folder {folder} cannot be written ({error.strerror or error}); give another.")


def versions_newest_first(variant: Path) -> list[Path]:
    """The `version_<k>` in a folder, the highest number first."""
    found = [(int(match[1]), path) for path in variant.glob("version_*") if (match := _VERSION.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def lock_run(folder: Path) -> RunLock:
    """Keep other processes off a run's folder for as long as this one lives, or until the lock is released.

    Raises:
        InputError: another process works on the run, or the folder cannot be written.
    """
    try:
        lock = RunLock(folder)
        if lock.acquire():
            return lock
    except OSError as error:
        raise _cannot_be_written(folder, error) from error
    raise InputError(f"another process works on the run in {folder}: wait for it or stop it, or start a run elsewhere.")
