"""A study's folder: the grids in its `study.yaml`, and the runs there that a grid may take over."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bnlab.errors import InputError
from bnlab.files.durable_files import write_durably
from bnlab.files.yaml_file import mapping_or_empty
from bnlab.studies.grid import COSMETIC, Grid, Run
from bnlab.studies.grid_inputs import dataset_text

FILE = "study.yaml"
BATCH_NORM = {"off": (False,), "on": (True,), "both": (False, True)}

# where a run lies and where its images do, but not what comes out
_PLACES = frozenset({"run_folder", "resume", "ckpt_path", "config", "trainer.default_root_dir", "data.root"})
_SHOWN = 3


def write_study(folder: Path, grids: Sequence[Grid]) -> None:
    """Write the study's grids, after those that were there before and are others."""
    here = [as_yaml(grid) for grid in grids]
    there = mapping_or_empty(folder / FILE).get("grids")
    earlier = [grid for grid in there if grid not in here] if isinstance(there, list) else []
    content = {"name": folder.name, "root_dir": str(folder.parent), "grids": [*earlier, *here]}
    write_durably(folder / FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def as_yaml(grid: Grid) -> dict[str, Any]:
    """A grid as primitives."""
    return {
        "configs": [str(config) for config in grid.configs],
        "datasets": [dataset_text(dataset) for dataset in grid.datasets],
        "batch_norm": next(name for name, values in BATCH_NORM.items() if values == grid.batch_norm),
        "seeds": list(grid.seeds),
        "batch_sizes": None if grid.batch_sizes is None else list(grid.batch_sizes),
        "root": grid.root,
        **grid.overrides,
    }


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

    `wanted` are the settings of each run, by its name.

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
