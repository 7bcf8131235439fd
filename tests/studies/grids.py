"""Small grids for tests, without files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnlab.studies.grid import Experiment, Grid, Run, expand


def runs_of(names: str = "mlp_relu", overrides: Mapping[str, Any] | None = None, **values: Any) -> list[Run]:
    """The runs of a grid over configs that are named, not read."""
    configs = tuple(Path(f"configs/{name}.yaml") for name in names.split())
    grid = Grid(configs=configs, overrides=overrides or {}, **values)
    return expand(grid, {config: Experiment(config.stem[:3]) for config in configs})
