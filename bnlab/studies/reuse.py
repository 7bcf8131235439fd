"""Whether what lies in a run's folder was made with the settings that the grid asks for now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bnlab.errors import InputError
from bnlab.studies.grid import Run
from bnlab.studies.naming import COSMETIC
from bnlab.yaml_file import mapping_or_empty

# where a run lies and where its images do, but not what comes out
_PLACES = frozenset({"run_folder", "resume", "ckpt_path", "config", "trainer.default_root_dir", "data.root"})
_SHOWN = 3


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names; lists stay as they are."""
    settings: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            settings |= flat(value, f"{prefix}{name}.")
        else:
            settings[f"{prefix}{name}"] = value
    return settings


def settings_there(folder: Path) -> dict[str, Any] | None:
    """The settings that a run was started with, flat, from its config.yaml; None without one that can be read."""
    content = mapping_or_empty(folder / "config.yaml")
    return flat(content) if content else None


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that both have and that differ in what they make of the numbers: name → (there, wanted).

    A setting that only one side knows is another release's, with a default that keeps what was.
    """
    names = (there.keys() & wanted.keys()) - COSMETIC - _PLACES
    return {name: (there[name], wanted[name]) for name in sorted(names) if there[name] != wanted[name]}


def check_reuse(study: Path, runs: Iterable[Run], wanted: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Refuse a grid that would take over runs made with other settings; returns what a person should know all the same.

    Args:
        study: the study's folder.
        runs: the grid's.
        wanted: the settings of each run, by its name.

    Raises:
        InputError: such a run is there, finished or begun.
    """
    others, moved = [], []
    for run in runs:
        there = settings_there(study / run.name)
        if there is None:
            continue
        found = differences(there, wanted[run.name])
        if found:
            listed = "; ".join(f"{name} is {was!r} there and {now!r} here" for name, (was, now) in found.items())
            others.append(f"{study / run.name}: {listed}")
        elif run.dataset.folder is not None and there.get("data.root") != run.dataset.folder:
            moved.append(f"{run.name} was made from {there.get('data.root')}, not {run.dataset.folder}")
    if others:
        more = f" (and {len(others) - _SHOWN} more)" if len(others) > _SHOWN else ""
        raise InputError(
            "these runs were made with other settings than this study asks for:\n  "
            + "\n  ".join(others[:_SHOWN])
            + f"{more}\nGive this study another --name, or move those folders away."
        )
    return moved
