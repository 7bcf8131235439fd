"""A grid of runs: what is varied, the runs that it stands for, and the folder of each."""

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bnlab.errors import InputError
from bnlab.studies.grid_inputs import Dataset, dataset

DEFAULT_BATCH_SIZE = 64

# what a grid's own keys say, so that an override must not say it once more
GRID_FLAGS = {
    "model.batch_norm": "--batch_norm",
    "seed_everything": "--seeds",
    "data.dataset": "--datasets",
    "data.batch_size": "--batch_sizes",
    "data.root": "--root",
    "trainer.default_root_dir": "--root_dir",
    "config": "--configs",
    "ckpt_path": "",
    "run_folder": "",
    "resume": "",
}

# how a run is watched and how fast its images come, but not what comes out
COSMETIC = frozenset(
    {"trainer.enable_progress_bar", "trainer.enable_model_summary", "data.num_workers", "data.download"}
)
_NOT_FOR_NAMES = re.compile(r"[^A-Za-z0-9_.+-]+")
_LONGEST = 80  # characters of a slug; file systems allow 255 for the whole name


@dataclass(frozen=True)
class Grid:
    """Every combination of these values is a run."""

    configs: tuple[Path, ...]  # config files of experiments
    datasets: tuple[Dataset, ...] = (dataset("digits"),)  # as `dataset` reads them from text
    batch_norm: tuple[bool, ...] = (False, True)  # off, on, or both
    seeds: tuple[int, ...] = (0,)  # values of `--seed_everything`
    batch_sizes: tuple[int, ...] | None = None  # values of `--data.batch_size`; None for what each config says
    root: str = "data"  # folder of the datasets' files
    overrides: Mapping[str, Any] = field(default_factory=dict)  # by flag of `bnlab fit` without its dashes


class Experiment(NamedTuple):
    """What a config file and the overrides make of the settings that a grid does not vary by itself."""

    architecture: str = "mlp"
    batch_size: int = DEFAULT_BATCH_SIZE
    max_epochs: int = 100


@dataclass(frozen=True)
class Run:
    """One run of a grid; `architecture` and `max_epochs` are what its config and overrides say."""

    config: Path
    architecture: str
    max_epochs: int
    dataset: Dataset
    batch_norm: bool
    seed: int
    batch_size: int
    root: str
    overrides: Mapping[str, Any]

    @property
    def experiment(self) -> str:
        """The config's stem."""
        return self.config.stem

    @property
    def name(self) -> str:
        """The run's folder within the study's: `mlp_relu/mnist-bn-seed0`."""
        return f"{self.experiment}/{self.variant}"

    @property
    def variant(self) -> str:
        """`<dataset>-<vanilla|bn>-seed<k>[-batch<B>][-<overrides>]`."""
        parts = [self.dataset.label, "bn" if self.batch_norm else "vanilla", f"seed{self.seed}"]
        if self.batch_size != DEFAULT_BATCH_SIZE:
            parts.append(f"batch{self.batch_size}")
        slug = overrides_slug(self.overrides)
        return "-".join([*parts, slug] if slug else parts)

    @property
    def identity(self) -> dict[str, Any]:
        """What result.json says the run is."""
        return {
            "experiment": self.experiment,
            "architecture": self.architecture,
            "dataset": self.dataset.label,
            "batch_norm": self.batch_norm,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "overrides": significant(self.overrides),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The flags of `bnlab fit` that make this run, beside its config."""
        return {
            "seed_everything": self.seed,
            "model.batch_norm": self.batch_norm,
            "data.dataset": self.dataset.name,
            "data.root": self.root if self.dataset.folder is None else self.dataset.folder,
            "data.batch_size": self.batch_size,
            **self.overrides,
        }

    @property
    def words(self) -> list[str]:
        """`fit --config … --model.batch_norm true …`, as in a shell."""
        flags = [word for name, value in self.settings.items() for word in (f"--{name}", flag_text(value))]
        return ["fit", "--config", str(self.config), *flags]


def expand(grid: Grid, experiments: Mapping[Path, Experiment]) -> list[Run]:
    """The grid's runs, seeds in the outermost loop, so that a study that is broken off has one of each kind first.

    Raises:
        InputError: a value is missing, out of range or there twice, or two runs would share a folder.
    """
    check(grid)
    return [
        Run(
            config=config,
            architecture=experiments[config].architecture,
            max_epochs=experiments[config].max_epochs,
            dataset=dataset,
            batch_norm=batch_norm,
            seed=seed,
            batch_size=batch_size,
            root=grid.root,
            overrides=grid.overrides,
        )
        for seed in grid.seeds
        for dataset in grid.datasets
        for config in grid.configs
        for batch_size in grid.batch_sizes or (experiments[config].batch_size,)
        for batch_norm in grid.batch_norm
    ]


def check_names(runs: Iterable[Run]) -> list[Run]:
    """The runs of several grids, each once.

    Raises:
        InputError: two of them are different and would share a folder.
    """
    named: dict[str, Run] = {}
    for run in runs:
        other = named.setdefault(run.name, run)
        if other.settings != run.settings or other.config.resolve() != run.config.resolve():
            raise InputError(
                f"two grids of this study have a run {run.name}, but not the same one: {shlex.join(other.words)} and "
                f"{shlex.join(run.words)}. Rename a config, or make two studies of them."
            )
    return list(named.values())


def check(grid: Grid) -> None:
    """Raise InputError for a grid that is empty somewhere, says something twice, or contradicts itself."""
    values: dict[str, Iterable[Any]] = {
        "configs": [config.stem for config in grid.configs],
        "datasets": [dataset.label for dataset in grid.datasets],
        "batch_norm": grid.batch_norm,
        "seeds": grid.seeds,
        "batch_sizes": grid.batch_sizes or (DEFAULT_BATCH_SIZE,),
    }
    for name, given in values.items():
        counts = Counter(given)
        if not counts:
            raise InputError(f"--{name} names nothing, so there is nothing to run.")
        twice = [str(value) for value, count in counts.items() if count > 1]
        if twice:
            what = "name the same run folder" if name == "configs" else "would run twice"
            raise InputError(f"--{name} has {', '.join(twice)} more than once: these {what}. Name each once.")
    for seed in grid.seeds:
        if not 0 <= seed < 2**32:
            raise InputError(f"--seeds {seed}: a seed must lie between 0 and {2**32 - 1}.")
    for batch_size in grid.batch_sizes or ():
        if batch_size < 1:
            raise InputError(f"--batch_sizes {batch_size}: a batch size must be 1 or more.")
    for name in grid.overrides:
        if name in GRID_FLAGS:
            way = f"give {GRID_FLAGS[name]} instead" if GRID_FLAGS[name] else "a study chooses it for each run"
            raise InputError(f"--{name} contradicts the study's own grid: {way}.")


def significant(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that belong to a run's identity, sorted by name."""
    return {name: value for name, value in sorted(overrides.items()) if name not in COSMETIC}


def overrides_slug(overrides: Mapping[str, Any]) -> str:
    """Overrides as part of a folder's name: `lr_0.1-max_epochs_2`; empty without any.

    Names of the sections model, data and trainer stand alone, since these have none in common. A hash is added where
    characters had to be replaced or left out, so that other values never get the same name.
    """
    parts, exact = [], True
    for name, value in significant(overrides).items():
        section, _, flag = name.partition(".")
        text = f"{flag if section in ('model', 'data', 'trainer') else name}_{flag_text(value)}"
        clean = _NOT_FOR_NAMES.sub("_", text)
        exact &= clean == text
        parts.append(clean)
    slug = "-".join(parts)
    if exact and len(slug) <= _LONGEST:
        return slug
    digest = hashlib.sha256(json.dumps(significant(overrides), default=str).encode()).hexdigest()[:8]
    return f"{slug[:_LONGEST]}-{digest}"


def flag_text(value: Any) -> str:
    """A value as a flag's text on the command line: `null`, `true`, `0.1`, JSON for lists and mappings."""
    return value if isinstance(value, str) else json.dumps(value)
