"""What a person asked `bnlab study` for, in flags or in a YAML file with the same keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnlab.cli.study_flags import ENGINES, overrides_of, parser
from bnlab.errors import InputError
from bnlab.studies.configs import find_configs
from bnlab.studies.datasets import dataset
from bnlab.studies.grid import Grid, check
from bnlab.studies.study_file import BATCH_NORM
from bnlab.yaml_file import read_yaml

_GRID = {
    "configs": None,
    "datasets": ["digits"],
    "batch_norm": "both",
    "seeds": [0],
    "batch_sizes": None,
    "root": "data",
}


@dataclass(frozen=True)
class Options:
    """What a person asked for."""

    grids: tuple[Grid, ...]
    name: str = "study"
    root_dir: str = "tb_logs"
    jobs: int | None = None
    engine: str = "local"
    ray_address: str | None = None
    ray_gpus: float | None = None
    dry_run: bool = False
    retry_failed: bool = False

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.root_dir) / self.name


def read_options(words: Sequence[str]) -> Options:
    """Flags, and the file that `--config` names.

    Raises:
        InputError: a flag or key that cannot be used, or a grid that is empty or contradicts itself.
    """
    known, rest = parser().parse_known_args(list(words))
    flags = vars(known)
    file = flags.pop("config", None)
    content = {} if file is None else _read_file(Path(file))
    entries = content.pop("grids", None)
    if entries is not None and not (isinstance(entries, list) and all(isinstance(grid, dict) for grid in entries)):
        raise InputError(f"--config {file}: grids must be a list of grids.")
    names = Options.__dataclass_fields__.keys() - {"grids"}
    given = {**content, **flags}
    options = {name: given.pop(name) for name in names & given.keys()}
    own_overrides = overrides_of(rest)
    grids = [_grid(file, {**entry, **given}, own_overrides) for entry in ([{}] if entries is None else entries)]
    return _checked(Options(tuple(grids), **options))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path} must hold keys such as configs, datasets and seeds.")
    return content


def _checked(options: Options) -> Options:
    if not options.name or options.name in (".", "..") or Path(options.name).name != options.name:
        raise InputError(f"--name {options.name!r} must be the name of one folder; --root_dir says where it lies.")
    if options.jobs is not None and (not isinstance(options.jobs, int) or options.jobs < 1):
        raise InputError(f"--jobs {options.jobs}: it must be 1 or more.")
    if options.engine not in ENGINES:
        raise InputError(f"--engine {options.engine}: choose from {', '.join(ENGINES)}.")
    if options.ray_gpus is not None and not options.ray_gpus >= 0:
        raise InputError(f"--ray_gpus {options.ray_gpus}: it must not be negative; 0.25 lets four runs share a GPU.")
    return options


def _grid(file: str | None, keys: Mapping[str, Any], flags: Mapping[str, Any]) -> Grid:
    """A grid from its keys; keys that no grid has are flags of `bnlab fit`, which `flags` beat."""
    overrides: dict[str, Any] = {}
    for name, value in keys.items():
        if name in _GRID:
            continue
        if isinstance(value, dict):  # a section
            overrides |= {f"{name}.{flag}": setting for flag, setting in value.items()}
        elif "." in name or name == "seed_everything":
            overrides[name] = value
        else:
            raise InputError(f"--config {file}: {name!r} is no key of a study. See bnlab study --help.")
    return grid_of({**_GRID, **{name: keys[name] for name in _GRID.keys() & keys.keys()}}, {**overrides, **flags})


def grid_of(keys: Mapping[str, Any], overrides: Mapping[str, Any]) -> Grid:
    """The grid that keys stand for.

    Raises:
        InputError: it is empty, contradicts itself, or names what is not there.
    """
    if not keys["configs"]:
        raise InputError("give --configs, for example --configs 'configs/mlp_*.yaml'. See bnlab study --help.")
    norm = keys["batch_norm"]
    norm = ("on" if norm else "off") if isinstance(norm, bool) else norm  # YAML reads `on` as true
    if norm not in BATCH_NORM:
        raise InputError(f"batch_norm is {norm!r}: choose from {', '.join(BATCH_NORM)}.")
    grid = Grid(
        configs=find_configs(_list(keys["configs"])),
        datasets=tuple(dataset(text) for text in _list(keys["datasets"])),
        batch_norm=BATCH_NORM[norm],
        seeds=_integers("seeds", keys["seeds"]),
        batch_sizes=None if keys["batch_sizes"] is None else _integers("batch_sizes", keys["batch_sizes"]),
        root=str(keys["root"]),
        overrides=overrides,
    )
    check(grid)
    return grid


def _list(value: Any) -> list[str]:
    """A list, or text with commas, as a list of texts."""
    items = value if isinstance(value, list) else [value]
    return [part.strip() for item in items for part in str(item).split(",") if part.strip()]


def _integers(name: str, value: Any) -> tuple[int, ...]:
    texts: Iterable[str] = _list(value)
    try:
        return tuple(int(text) for text in texts)
    except ValueError:
        raise InputError(f"--{name} {','.join(texts)}: these must be whole numbers.") from None
