"""What `bnlab fit` would make of a study's runs, found out before any of them starts."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from bnlab.cli.arguments import flags_after_configs
from bnlab.cli.commands import BnlabCLI
from bnlab.data import ImageDataModule
from bnlab.errors import InputError
from bnlab.studies.grid import Experiment, Run, flag_text
from bnlab.training import Classifier

_LOGGERS = ("lightning.pytorch", "lightning.fabric")


class _Parsed(BnlabCLI):
    """The command line up to the point where training would begin."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Checker:
    """Parses and checks what runs of a study get, quietly and without writing anything.

    Args:
        overrides: flags of `bnlab fit` that all runs get.
    """

    def __init__(self, overrides: Mapping[str, Any]) -> None:
        self._flags = [word for name, value in overrides.items() for word in (f"--{name}", flag_text(value))]
        self._cli: _Parsed | None = None
        self._settings: dict[Path, dict[str, Any]] = {}

    @property
    def on_gpu(self) -> bool:
        """Whether the runs would train on a CUDA device."""
        assert self._cli is not None
        return bool(self._cli.trainer.strategy.root_device.type == "cuda")

    def settings(self, config: Path) -> dict[str, Any]:
        """All settings that a config and the overrides make, flat: `model.lr` → 0.01.

        Raises:
            ArgumentError, InputError: one of them cannot be used.
        """
        if config not in self._settings:
            words = flags_after_configs(["fit", "--config", str(config), *self._flags])
            with _quiet():
                if self._cli is None:
                    self._cli = _Parsed([*words, "--trainer.devices", "1"])  # a worker sees no more
                parser = self._cli.parser
                content = parser.parse_args(words)["fit"]
                content.pop("config", None)
                text = self._cli._parser("fit").dump(content, skip_validation=True)
            self._settings[config] = flat(yaml.safe_load(text))
        return self._settings[config]

    def experiment(self, config: Path) -> Experiment:
        """What the grid needs to know of a config."""
        settings = self.settings(config)
        if settings.get("trainer.devices") not in ("auto", 1, "1") or settings.get("trainer.num_nodes") != 1:
            raise InputError(
                f"--trainer.devices {settings.get('trainer.devices')}, --trainer.num_nodes "
                f"{settings.get('trainer.num_nodes')}: each run of a study trains on one device; --jobs runs several "
                "at once. Use bnlab fit for a run on several devices."
            )
        return Experiment(
            settings["model.architecture"], settings["data.batch_size"], settings["trainer.max_epochs"] or 1000
        )

    def resolved(self, run: Run) -> dict[str, Any]:
        """All settings of a run."""
        return {**self.settings(run.config), **run.settings}

    def check(self, runs: Sequence[Run]) -> None:
        """Build each kind of net without memory or numbers, and the data's description: what they refuse, runs would.

        Raises:
            InputError: a run cannot be made.
        """
        seen = set()
        for run in runs:
            kind = (run.config, run.dataset, run.batch_norm, run.batch_size)
            if kind not in seen:
                seen.add(kind)
                self._check(run)

    def _check(self, run: Run) -> None:
        if run.batch_norm and run.batch_size == 1:
            raise InputError("--batch_sizes 1 with batch norm: one sample has no variance to normalise by.")
        settings = self.resolved(run)
        data = self.data(run)
        model = {name.partition(".")[2]: value for name, value in settings.items() if name.startswith("model.")}
        model |= {"num_classes": data.num_classes, "in_channels": data.in_channels, "image_size": data.image_size}
        try:
            with torch.device("meta"):
                Classifier(**model)
        except InputError as error:
            raise InputError(f"{run.name}: {error}") from error

    def data(self, run: Run) -> ImageDataModule:
        """The run's data, not read yet."""
        settings = self.resolved(run)
        return ImageDataModule(
            **{name.partition(".")[2]: value for name, value in settings.items() if name.startswith("data.")}
        )

    def prepare(self, runs: Sequence[Run]) -> None:
        """Fetch and check each dataset's files once, before several processes would at the same time."""
        for run in {run.dataset: run for run in runs}.values():
            self.data(run).prepare_data()


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names; lists stay as they are."""
    settings: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            settings |= flat(value, f"{prefix}{name}.")
        else:
            settings[f"{prefix}{name}"] = value
    return settings


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from telling about a Trainer that never trains."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
