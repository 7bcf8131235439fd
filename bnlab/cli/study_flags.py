"""The flags of `bnlab study`: its own, and those that it hands on to `bnlab fit`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import yaml

from bnlab.cli.parser import CommandParser
from bnlab.errors import InputError
from bnlab.studies.datasets import NAMED_DATASETS
from bnlab.studies.study_file import BATCH_NORM

ENGINES = ("local", "ray")


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
