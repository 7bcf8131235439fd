"""The folder of a new run: `<root>/<experiment>/<dataset>-<vanilla|bn>-seed<seed>/version_<k>`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bnlab.errors import InputError
from bnlab.files.yaml_file import mapping_or_empty


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
