"""`bnlab study`: a grid of runs from one command line or one YAML file."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from bnlab.errors import InputError
from bnlab.studies.configs import find_configs
from bnlab.studies.grid import Dataset, Grid, Run, check, dataset, expand
from bnlab.studies.results import write_text

if TYPE_CHECKING:
    from bnlab.cli.study_settings import Checker
    from bnlab.studies.conduct import Engine, State

_WORKER = "bnlab.cli.study_run"
_BATCH_NORM = {"off": (False,), "on": (True,), "both": (False, True)}
_LISTS = ("configs", "datasets", "seeds", "batch_sizes")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See bnlab study --help.")


def parser() -> argparse.ArgumentParser:
    """The command's own flags; all others go to `bnlab fit`."""
    made = _Parser(
        prog="bnlab study",
        allow_abbrev=False,
        description="Train and test every combination of configs, datasets, batch norm, seeds and batch sizes, each "
        "run in a process of its own. Kill it at any moment and give the same command again: finished runs are kept, "
        "the others go on from their last checkpoints.",
        epilog="Any other --SECTION.FLAG VALUE goes to bnlab fit, for all runs: --trainer.max_epochs 20. "
        "Lists are separated by commas or spaces. With --config, flags beat the file.",
    )
    add = made.add_argument
    add("--config", metavar="FILE", help="YAML file with these keys: configs, datasets, batch_norm, seeds, …")
    add("--configs", nargs="+", metavar="CONFIG", help="experiments: names such as mlp_relu, files, globs in quotes")
    add(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help="digits (default), mnist, svhn, cifar10, cifar100, label=npz:FOLDER",
    )
    add("--batch_norm", choices=list(_BATCH_NORM), help="default: both")
    add("--seeds", nargs="+", metavar="N", help="default: 0")
    add("--batch_sizes", nargs="+", metavar="N", help="default: what the configs say, 64")
    add("--root", metavar="FOLDER", help="folder of the datasets' files (default: data)")
    add("--name", help="the study's name (default: study)")
    add("--root_dir", metavar="FOLDER", help="where the study's folder lies (default: tb_logs)")
    add("--jobs", type=int, metavar="N", help="runs at once (default: as many as cores, memory and GPUs allow)")
    add("--engine", choices=["local", "ray"], help="what starts the runs (default: local); ray: pip install bnlab[ray]")
    add("--ray_address", metavar="ADDRESS", help="a Ray cluster that is there, or auto (default: one of its own)")
    add(
        "--ray_gpus",
        type=float,
        metavar="SHARE",
        help="share of a GPU for each run under ray (default: 0.25 with GPUs)",
    )
    add("--dry_run", action="store_true", default=None, help="list the runs and how long they may take, and end")
    add("--retry_failed", action="store_true", default=None, help="run those once more that failed")
    return made


def run(words: list[str]) -> None:
    """Run the command, given as words."""
    options = read_options(words[1:])
    folder = Path(options["root_dir"]) / options["name"]
    grid = grid_of(options)
    from bnlab.cli.study_settings import Checker

    checker = Checker(grid.overrides)
    runs = expand(grid, {config: checker.experiment(config) for config in grid.configs})
    checker.check(runs)
    _study(options, folder, grid, runs, checker)


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """The command's flags and its YAML file as one dictionary; flags of `bnlab fit` under `overrides`.

    Raises:
        InputError: a flag or key that cannot be used.
    """
    known, rest = parser().parse_known_args(list(words))
    flags = {name: value for name, value in vars(known).items() if value is not None}
    flags["overrides"] = overrides_of(rest)
    options: dict[str, Any] = {
        "datasets": ["digits"],
        "batch_norm": "both",
        "seeds": [0],
        "batch_sizes": None,
        "root": "data",
        "name": "study",
        "root_dir": "tb_logs",
        "jobs": None,
        "engine": "local",
        "ray_address": None,
        "ray_gpus": None,
        "dry_run": False,
        "retry_failed": False,
    }
    file = options_of_file(Path(known.config), {*options, "configs"}) if known.config else {"overrides": {}}
    return {**options, **file, **flags, "overrides": {**file["overrides"], **flags["overrides"]}}


def options_of_file(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """A study's YAML file; sections such as `model: {lr: 0.1}` become overrides `model.lr`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path} must hold keys such as configs, datasets and seeds.")
    options: dict[str, Any] = {"overrides": {}}
    for name, value in content.items():
        if name in names:
            options[name] = value
        elif isinstance(value, dict):
            options["overrides"] |= {f"{name}.{flag}": setting for flag, setting in value.items()}
        else:
            options["overrides"][name] = value
    return options


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


def grid_of(options: Mapping[str, Any]) -> Grid:
    """The grid that options stand for.

    Raises:
        InputError: it is empty, contradicts itself, or names what is not there.
    """
    if not options.get("configs"):
        raise InputError("give --configs, for example --configs 'configs/mlp_*.yaml'. See bnlab study --help.")
    lists = {name: _list(options[name]) for name in _LISTS if options[name] is not None}
    norm = options["batch_norm"]
    norm = {True: "on", False: "off"}.get(norm, norm) if isinstance(norm, bool) else norm  # YAML reads on as true
    if norm not in _BATCH_NORM:
        raise InputError(f"batch_norm is {norm!r}: choose from {', '.join(_BATCH_NORM)}.")
    grid = Grid(
        configs=find_configs(lists["configs"]),
        datasets=tuple(dataset(text) for text in lists["datasets"]),
        batch_norm=_BATCH_NORM[norm],
        seeds=_integers("seeds", lists["seeds"]),
        batch_sizes=_integers("batch_sizes", lists["batch_sizes"]) if "batch_sizes" in lists else None,
        root=str(options["root"]),
        overrides=options["overrides"],
    )
    check(grid)
    return grid


def _list(value: Any) -> list[str]:
    """A list, or text with commas, as a list of texts."""
    items = value if isinstance(value, list) else [value]
    return [part.strip() for item in items for part in str(item).split(",") if part.strip()]


def _integers(name: str, texts: Iterable[str]) -> tuple[int, ...]:
    try:
        return tuple(int(text) for text in texts)
    except ValueError:
        raise InputError(f"--{name} {','.join(texts)}: these must be whole numbers.") from None


def _study(options: Mapping[str, Any], folder: Path, grid: Grid, runs: list[Run], checker: Checker) -> None:
    from rich.console import Console

    from bnlab.studies.conduct import begin, conduct
    from bnlab.studies.display import LiveDisplay, PlainLines, print_end
    from bnlab.studies.estimate import from_results, total

    console = Console()
    state = begin(folder, runs, options["retry_failed"])
    checker.prepare(runs)
    engine = _engine(options, len(state.waiting), checker)

    def time_left(state: State) -> float | None:
        waiting = [*state.waiting, *state.running.values()]
        return total(waiting, lambda run: from_results(run, state.results.values()), engine.jobs)

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "study.yaml", yaml.safe_dump(as_yaml(grid), sort_keys=False, allow_unicode=True))
    console.print(
        f"study {folder}: {len(runs)} runs, {len(state.results)} of them done; {engine.name}, {engine.jobs} at once, "
        f"{engine.threads} threads each",
        highlight=False,
        soft_wrap=True,
    )
    live = console.is_terminal
    watcher = LiveDisplay(console, time_left) if live else PlainLines(console, time_left)
    try:
        with _terminable(), watcher if isinstance(watcher, LiveDisplay) else nullcontext():
            conduct(state, engine, watcher)
    except KeyboardInterrupt:
        done = len(state.results)
        console.print(f"\nstopped; {done} of {len(runs)} runs are done. The same command goes on where this one was:")
        console.print(f"  bnlab {' '.join(sys.argv[1:])}", highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(130) from None
    print_end(console, state)
    if any(result["outcome"]["status"] == "failed" for result in state.results.values()):
        raise SystemExit(1)


def _engine(options: Mapping[str, Any], runs: int, checker: Checker) -> Engine:
    from bnlab.studies.local_engine import LocalEngine, default_jobs, this_machine

    machine = this_machine(checker.on_gpu)
    return LocalEngine(_WORKER, options["jobs"] or default_jobs(machine, runs), machine)


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM what Ctrl-C is."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def as_yaml(grid: Grid) -> dict[str, Any]:
    """A grid as `--config` reads it."""
    norm = next(name for name, values in _BATCH_NORM.items() if values == grid.batch_norm)
    return {
        "configs": [str(config) for config in grid.configs],
        "datasets": [_dataset_text(dataset) for dataset in grid.datasets],
        "batch_norm": norm,
        "seeds": list(grid.seeds),
        "batch_sizes": None if grid.batch_sizes is None else list(grid.batch_sizes),
        "root": grid.root,
        **grid.overrides,
    }


def _dataset_text(dataset: Dataset) -> str:
    return dataset.label if dataset.folder is None else f"{dataset.label}=npz:{dataset.folder}"
