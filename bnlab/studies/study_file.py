"""`study.yaml`: the grids that a study's folder holds, in the words that `bnlab study --config` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bnlab.durable_files import write_durably
from bnlab.studies.datasets import dataset_text
from bnlab.studies.grid import Grid
from bnlab.yaml_file import mapping_or_empty

FILE = "study.yaml"
BATCH_NORM = {"off": (False,), "on": (True,), "both": (False, True)}


def write_study(folder: Path, grids: Sequence[Grid]) -> None:
    """Write the study's grids, after those that were there before and are others."""
    here = [as_yaml(grid) for grid in grids]
    earlier = [grid for grid in _grids_there(folder / FILE) if grid not in here]
    content = {"name": folder.name, "root_dir": str(folder.parent), "grids": [*earlier, *here]}
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _grids_there(path: Path) -> list[Any]:
    grids = mapping_or_empty(path).get("grids")
    return list(grids) if isinstance(grids, list) else []


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
