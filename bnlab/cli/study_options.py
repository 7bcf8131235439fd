"""The options of `bnlab study`: flags of its own, those for `bnlab fit`, and a YAML file with the same keys."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bnlab.cli.arguments import CommandParser
from bnlab.errors import InputError
from bnlab.files.yaml_file import read_yaml
from bnlab.studies.grid import Grid, check
from bnlab.studies.grid_inputs import NAMED_DATASETS, dataset, find_configs
from bnlab.studies.study_folder import BATCH_NORM

ENGINES = ("local", "ray")
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
    keys = {**_GRID, **keys}
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
        overrides={**overrides, **flags},
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


def parser() -> CommandParser:
    """The command's own flags; all others go to `bnlab fit`."""
    made = CommandParser(
        prog="bnlab study",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Train and test every combination of configs, datasets, batch norm, seeds and batch sizes, each "
        "run in a process of its own. Kill it at any moment and give the same command again: finished runs are kept, "
        "the others go on from their last checkpoints.",
        epilog="Any other --SECTION.FLAG VALUE goes to bnlab fit, for all runs: --trainer.max_epochs 20. Lists are "
        "separated by commas or spaces. A YAML file has the same keys, sections of bnlab fit among them, or a list "
        "`grids` of several such grids; flags beat the file.",
    )
    add = made.add_argument
    add("--config", metavar="FILE", help="YAML file with these keys, such as a study's own study.yaml")
    add("--configs", nargs="+", metavar="CONFIG", help="experiments: names such as mlp_relu, files, or globs in quotes")
    names = ", ".join(NAMED_DATASETS)
    add("--datasets", nargs="+", metavar="NAME", help=f"{names}, or label=npz:FOLDER (default: digits)")
    add("--batch_norm", choices=list(BATCH_NORM), help="(default: both)")
    add("--seeds", nargs="+", metavar="N", help="values of --seed_everything (default: 0)")
    add("--batch_sizes", nargs="+", metavar="N", help="(default: what the configs say, else 64)")
    add("--root", metavar="FOLDER", help="folder of the datasets' files (default: data)")
    add("--name", help="the study's name (default: study)")
    add("--root_dir", metavar="FOLDER", help="where the study's folder lies (default: tb_logs)")
    add("--jobs", type=int, metavar="N", help="runs at once (default: as many as cores, memory and GPUs allow)")
    add("--engine", choices=ENGINES, help="what starts the runs (default: local); ray needs bnlab[ray]")
    add("--ray_address", metavar="ADDRESS", help="a Ray cluster that is there, or auto (default: one of its own)")
    add("--ray_gpus", type=float, metavar="SHARE", help="a run's share of a GPU under ray (default: 0.25)")
    add("--dry_run", action="store_true", help="list the runs and how long they may take, and start none")
    add("--retry_failed", action="store_true", help="try runs again that failed")
    return made


def overrides_of(words: Sequence[str]) -> dict[str, Any]:
    """`--model.lr 0.1 --trainer.max_epochs=2` → {"model.lr": 0.1, "trainer.max_epochs": 2}.

    Raises:
        InputError: a word that is no flag, a flag without its value, or one that is given twice.
    """
    overrides: dict[str, Any] = {}
    rest = list(words)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        name = flag.removeprefix("--")
        if name == flag or not name:
            raise InputError(f"{flag!r} belongs to no flag of bnlab study. See bnlab study --help.")
        if "." not in name and name != "seed_everything":
            raise InputError(f"--{name} is no flag of bnlab study; those of bnlab fit have a section, as --model.lr.")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"--{name} needs a value.")
            value = rest.pop(0)
        if name in overrides:
            raise InputError(f"--{name} is given twice; a study gives all its runs one value.")
        overrides[name] = yaml.safe_load(value)
    return overrides
