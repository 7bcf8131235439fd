"""The settings that `bnlab fit` would give a study's runs, checked before any of them starts."""

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
from bnlab.studies.estimate import START_S, Estimate, seconds_per_step, training_images
from bnlab.studies.grid import Experiment, Run, flag_text
from bnlab.studies.study_folder import flat
from bnlab.training import Classifier

# settings that a study needs as they are, and why
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "trainer.devices": (("auto", 1, "1"), "each run trains on one device, and --jobs runs several at once"),
    "trainer.num_nodes": ((1,), "each run trains on one device, and --jobs runs several at once"),
    "trainer.fast_dev_run": ((False, 0), "such a run leaves no result; --trainer.max_epochs 1 is a short one"),
    "trainer.enable_checkpointing": ((None, True), "runs are tested, and go on, from their last checkpoints"),
    "checkpoint.filename": (("last",), "runs are tested, and go on, from their last checkpoints"),
    "checkpoint.dirpath": ((None,), "runs are tested, and go on, from checkpoints in their own folders"),
}
_ENDLESS = 1000  # epochs, Lightning's own limit, for a run without a limit


class _Parsed(BnlabCLI):
    """The command line up to the point where training would begin."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class Checker:
    """Parses and checks what runs of a grid get, flags for all of them among it; quietly, and it writes nothing."""

    def __init__(self, overrides: Mapping[str, Any]) -> None:
        self._overrides = overrides
        self._cli: _Parsed | None = None
        self._settings: dict[Path, dict[str, Any]] = {}

    @property
    def device(self) -> torch.device:
        """Where the runs would train."""
        assert self._cli is not None
        return self._cli.trainer.strategy.root_device

    def settings(self, config: Path) -> dict[str, Any]:
        """All settings that a config and the overrides make, flat: `model.lr` → 0.01.

        Raises:
            ArgumentError, InputError: one of them cannot be used.
        """
        if config not in self._settings:
            flags = [word for name, value in self._overrides.items() for word in (f"--{name}", flag_text(value))]
            words = flags_after_configs(["fit", "--config", str(config), *flags])
            with _without_messages():
                if self._cli is None:
                    self._cli = _Parsed([*words, "--trainer.devices", "1"])  # a worker sees no more
                content = self._cli.parser.parse_args(words)["fit"]
                content.pop("config", None)
                text = self._cli._parser("fit").dump(content, skip_validation=True)
            settings = flat(yaml.safe_load(text))
            for name, (allowed, reason) in _FIXED.items():
                if name in settings and settings[name] not in allowed:
                    raise InputError(f"--{name} {flag_text(settings[name])} is not for a study: {reason}.")
            self._settings[config] = settings
        return self._settings[config]

    def typed_overrides(self) -> dict[str, Any]:
        """The overrides as the parser understood them, so that 0.10 and 0.1 are the same."""
        settings = next(iter(self._settings.values()))
        return {name: settings.get(name, value) for name, value in self._overrides.items()}

    def experiment(self, config: Path) -> Experiment:
        """What the grid needs to know of a config."""
        settings = self.settings(config)
        epochs = settings["trainer.max_epochs"]
        return Experiment(
            architecture=settings["model.architecture"],
            batch_size=settings["data.batch_size"],
            max_epochs=epochs if epochs is not None and epochs >= 0 else _ENDLESS,
        )

    def resolved(self, run: Run) -> dict[str, Any]:
        """All settings of a run."""
        return {**self.settings(run.config), **run.settings}

    def check(self, runs: Sequence[Run]) -> None:
        """Build each kind of net without its numbers, and describe its data: what they refuse, the runs would.

        Raises:
            InputError: a run cannot be made.
        """
        for run in {(run.config, run.dataset, run.batch_norm, run.batch_size): run for run in runs}.values():
            if run.batch_norm and run.batch_size == 1:
                raise InputError(f"{run.name}: batch norm needs a batch size of 2 or more to have a variance.")
            with torch.device("meta"):
                self.model(run)

    def model(self, run: Run) -> Classifier:
        """The run's net, untrained."""
        data = self.data(run)
        arguments = _section(self.resolved(run), "model")
        linked = {name: getattr(data, name) for name in ("num_classes", "in_channels", "image_size")}
        try:
            return Classifier(**{**arguments, **linked})
        except InputError as error:
            problem = f"{run.name}: {error}"
        raise InputError(problem)  # out here, since the command line shows the first of a chain

    def data(self, run: Run) -> ImageDataModule:
        """The run's data, not read yet."""
        return ImageDataModule(**_section(self.resolved(run), "data"))

    def prepare(self, runs: Sequence[Run]) -> None:
        """Fetch and check each dataset's files once, before several processes would at the same time."""
        for run in {run.dataset: run for run in runs}.values():
            self.data(run).prepare_data()

    def measured(self, run: Run, threads: int) -> Estimate:
        """How long all epochs of a run would take, from a few training steps here."""
        data = self.data(run)
        images = training_images(data.dataset, data.root, data.val_fraction)
        step = seconds_per_step(self.model(run), run.batch_size, self.device, threads)
        seconds = START_S + run.max_epochs * (images // run.batch_size) * step
        return Estimate(seconds, f"at most: {run.max_epochs} epochs at the pace of a few steps, measured here")


def _section(settings: Mapping[str, Any], section: str) -> dict[str, Any]:
    prefix = f"{section}."
    return {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}


@contextlib.contextmanager
def _without_messages() -> Iterator[None]:
    """Leave out all that is said of a Trainer that never trains."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
