"""The commands `bnlab fit`, `validate`, `test` and `predict`: LightningCLI with the project's parts."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bnlab.cli import run_folder
from bnlab.cli.arguments import check_configs, config_of_checkpoint, flags_after_configs, given_names
from bnlab.cli.checks import check_batch_norm, check_weights, checkpoint_arguments
from bnlab.cli.quiet import without_expected_warnings
from bnlab.cli.resumed_config import END_OF_CONFIG, check_whole, merged_config, plain
from bnlab.cli.trainer_parts import complete, write_into
from bnlab.data import ImageDataModule
from bnlab.errors import InputError
from bnlab.files.durable_files import write_durably
from bnlab.resuming.checkpoint_file import set_aside
from bnlab.resuming.exact_resume import ExactResume
from bnlab.resuming.run_checkpoint import RunCheckpoint
from bnlab.resuming.run_files import clear, cut_back
from bnlab.resuming.stopping import check_no_requeued, take_requeue
from bnlab.training import Classifier
from bnlab.training.gloo_address import unreachable
from bnlab.training.run_output import PredictionWriter
from bnlab.training.run_record import RunRecord
from bnlab_callbacks import (
    ActivationMonitor,
    BatchNormMonitor,
    ChartLayout,
    EpochTimer,
    GradientMonitor,
    LayerHeatmap,
    RecordFile,
    TrainingDiagnosis,
)

# the thesis's protocol (section 6.2), and what every run shares
_TRAINER = {"max_epochs": 100, "enable_model_summary": False}
_SECTIONS = {
    "gradients": GradientMonitor,
    "activations": ActivationMonitor,
    "batch_norm": BatchNormMonitor,
    "timing": EpochTimer,
    "heatmaps": LayerHeatmap,
    "charts": ChartLayout,
    "records": RecordFile,
    "diagnosis": TrainingDiagnosis,
    "early_stopping": EarlyStopping,
    "checkpoint": RunCheckpoint,
}
_DEFAULTS = {
    "early_stopping.monitor": "val_acc",
    "early_stopping.mode": "max",
    "early_stopping.patience": 20,
    "early_stopping.min_delta": 0.0,
    # the thesis tests the model of the last epoch, so that is the one kept
    "checkpoint.filename": "last",
    "checkpoint.enable_version_counter": False,
}
_LINKED = ("num_classes", "in_channels", "image_size")
_FLAGS_OF_FIT = {"config", "run_folder", "resume"}  # which config.yaml does not keep
_SIGTERM_STATUS = 128 + 15  # as a shell tells it


def run(words: list[str], cli: type[BnlabCLI] | None = None) -> BnlabCLI:
    """Run a command, given as words; returns what ran it (a `BnlabCLI`, or the `cli` given), with its Trainer."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with without_expected_warnings():
        try:
            words = flags_after_configs(config_of_checkpoint(words))
            check_configs(words)
            return (cli or BnlabCLI)(words)
        except SIGTERMException as stopped:
            raise SystemExit(_SIGTERM_STATUS) from stopped


class BnlabCLI(LightningCLI):
    """LightningCLI with the project's model, data and diagnostics as sections, and run folders of its own."""

    def __init__(self, words: list[str]) -> None:
        self.folder: Path | None = None
        self.plan = run_folder.Plan()
        self._command = words[0]
        try:  # this runs the command, too
            super().__init__(
                Classifier,
                ImageDataModule,
                args=words,
                save_config_callback=None,  # `before_fit` writes config.yaml, into a folder that no other run has
                seed_everything_default=0,
                trainer_defaults=_TRAINER,
                parser_kwargs={"exit_on_error": False},  # `main` prints the one message, without a screen of usage
                auto_configure_optimizers=False,  # optimizer and schedule are the protocol's, through the model's flags
            )
        finally:
            if self.plan.lock is not None:
                self.plan.lock.release()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """A section per diagnostic, so that a second --config never drops one; sizes come from the data."""
        for section, callback in _SECTIONS.items():
            parser.add_lightning_class_args(callback, section)
        parser.set_defaults(_DEFAULTS)
        for name in _LINKED:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # a static method there
        """The one that is asked for, since the flags of each take long to gather."""
        return {self._command: super().subcommands()[self._command]}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """`fit` has two flags of its own."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            run_folder.add_flags(parser)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the words, and remember them: defaults must not count as what a person asked for."""
        assert isinstance(args, list)
        self._words = args
        self.config = parser.parse_args(args)
        if self.config["subcommand"] == "fit" and not self.config["fit"]["trainer"]["fast_dev_run"]:
            self._plan(self.config["fit"])

    def _plan(self, config: Namespace) -> None:
        """Find the run that is meant, and take over its configuration if it is resumed."""
        resume = config["resume"] or config["ckpt_path"] == "last"
        if config["ckpt_path"] == "last":
            config["ckpt_path"] = None
        names = given_names(self._words)
        max_epochs = config["trainer"]["max_epochs"] if "trainer.max_epochs" in names else None
        folder = Path(config["run_folder"]) if config["run_folder"] else None
        if not resume:
            if folder is not None and _first_process():
                run_folder.check_free(folder)
            self.plan = run_folder.Plan(folder)
            return
        variant = self._variant_folder(config)
        folder = folder or run_folder.find_run(variant, max_epochs, _first_process())
        if folder is not None:
            self.plan = run_folder.plan_resume(folder, max_epochs, _first_process())
        if _first_process():
            run_folder.announce(self.plan, variant, print)
        if folder is not None and self.plan.record is not None:
            self._take_config(config, folder, names)
        if self.plan.checkpoint is not None:
            self.config["fit"]["ckpt_path"] = str(self.plan.checkpoint.path)

    def _take_config(self, config: Namespace, folder: Path, names: set[str]) -> None:
        """Take over the configuration of a resumed run, and what the words may change of it."""
        path = folder / "config.yaml"
        if not path.exists():  # the words have to say it all
            return
        check_whole(path)
        of_run = self.parser.parse_args(["fit", "--config", str(path)])["fit"]
        self.config["fit"] = merged_config(config, of_run, names - _FLAGS_OF_FIT - {"ckpt_path"}, folder)

    def _variant_folder(self, config: Namespace) -> Path:
        data, model = config["data"], config["model"]
        variant = run_folder.variant_name(data["dataset"], model["batch_norm"], config["seed_everything"])
        return Path(config["trainer"]["default_root_dir"] or "tb_logs") / self._experiment(config) / variant

    @staticmethod
    def _experiment(config: Namespace) -> str:
        files = [Path(str(path)) for path in config.get("config") or []]
        return run_folder.experiment_name(files, f"{config['model']['architecture']}_{config['model']['activation']}")

    def _parse_ckpt_path(self) -> None:
        """Take the model's arguments from the checkpoint; a flag that says something else is an error (PL#21455)."""
        config = self.config[self.config["subcommand"]]
        path = config.get("ckpt_path")
        if not path:
            return
        model = config["model"]
        explicit = given_names(self._words)
        for name, value in checkpoint_arguments(path).items():
            if name in _LINKED or name not in model:
                continue
            if f"model.{name}" in explicit and model[name] != value:
                raise InputError(
                    f"--model.{name} is {model[name]!r}, but {path} was trained with {value!r}. Leave the flag out to "
                    "go on with the checkpoint's model, or leave --ckpt_path out to start a new one."
                )
            model[name] = value

    def instantiate_classes(self) -> None:
        """Build data, model, callbacks and Trainer: what they refuse is an argument that cannot be used."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            raise InputError(str(error)) from error
        if isinstance(self.trainer.precision_plugin, DoublePrecision):
            self.model.double()  # else Lightning loads a checkpoint into float32 first, and what is float64 is rounded

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has beside the sections' callbacks."""
        trainer = super().instantiate_trainer(**kwargs)
        complete(trainer, self.config["fit"] if self.subcommand == "fit" else None)
        return trainer

    def before_fit(self) -> None:
        """Check the input while nothing is written yet, then make the run's folder."""
        if self.plan.ended:
            return
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        check_batch_norm(self.config["fit"], synchronisable=not on_cpu)
        if self.config["fit"]["ckpt_path"]:
            check_weights(self.config["fit"]["ckpt_path"], self.model, to_train=True)
        else:
            check_no_requeued(self.trainer)
        requeue_signal = take_requeue(self.trainer)
        complaint = unreachable(self.trainer)
        if complaint and self.trainer.local_rank == 0:
            sys.stderr.write(f"bnlab: {complaint}\n")
        if _first_process():
            self.datamodule.prepare_data()
            self.datamodule.setup("fit")
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            if _first_process():
                self._prepare_folder()
            resume = ExactResume(self.folder or Path(), self.plan.checkpoint is not None, requeue_signal)
            self.trainer.callbacks.insert(0, resume)  # type: ignore[attr-defined]

    def fit(self, **arguments: Any) -> None:
        """Train, unless the run has ended already."""
        if not self.plan.ended:
            self.trainer.fit(**arguments)

    def _prepare_folder(self) -> None:
        config = self.config["fit"]
        if self.plan.folder is None:
            self.folder = run_folder.make_next_version(self._variant_folder(config))
        else:
            self.folder = run_folder.make_folder(self.plan.folder)
        if self.plan.lock is None:
            self.plan.lock = run_folder.lock_run(self.folder)
            run_folder.check_free(self.folder)  # again: now nobody else can begin one
        set_aside(self.plan.damaged)
        if self.plan.checkpoint is not None:
            for complaint in cut_back(self.folder, self.plan.checkpoint.state["files"]):
                sys.stderr.write(f"bnlab: {complaint}\n")
        elif self.plan.record is not None:
            clear(self.folder)
        self._write_config(self.folder / "config.yaml")
        write_into(self.trainer, self.folder, config)
        identity = {
            "experiment": self._experiment(config),
            "dataset": config["data"]["dataset"],
            "batch_norm": config["model"]["batch_norm"],
            "seed": config["seed_everything"],
            "split_seed": config["data"]["split_seed"],
        }
        found = self.plan.checkpoint
        resumed = found and {"file": found.path.name, "epoch": found.epoch, "step": found.step}
        record = RunRecord(self.folder, identity, self.plan.record, resumed)
        self.trainer.callbacks.insert(0, record)  # type: ignore[attr-defined]

    def _write_config(self, path: Path) -> None:
        config = self.config["fit"].clone()
        for name in _FLAGS_OF_FIT:
            config.pop(name, None)
        if self.plan.checkpoint is not None:
            config["ckpt_path"] = None  # the run's own
        write_durably(path, self._parser("fit").dump(config, skip_validation=True) + END_OF_CONFIG)

    def before_predict(self) -> None:
        """Check the input, and choose where the probabilities go: beside the checkpoint's run."""
        self.before_test()
        checkpoint = Path(self.config["predict"]["ckpt_path"])
        folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
        self.trainer.callbacks.append(PredictionWriter(folder / "predictions.npz"))  # type: ignore[attr-defined]

    def before_test(self) -> None:
        """Check the input: that there is a checkpoint, and that it fits the images and the model."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        if not config.get("ckpt_path"):
            raise InputError(
                f"bnlab {self.subcommand} needs a trained model: give --ckpt_path, which bnlab fit prints at its end."
            )
        saved = checkpoint_arguments(config["ckpt_path"])
        for name in _LINKED:
            if name in saved and plain(saved[name]) != plain(getattr(self.datamodule, name)):
                raise InputError(
                    f"{config['ckpt_path']} was trained on images with {name}={saved[name]}, but "
                    f"--data.dataset {self.datamodule.dataset} has {getattr(self.datamodule, name)}."
                )
        check_weights(config["ckpt_path"], self.model, to_train=False)
        if _first_process():
            self.datamodule.prepare_data()

    before_validate = before_test


def _first_process() -> bool:
    """Whether this is the process that writes; known before the ranks meet."""
    return getattr(rank_zero_only, "rank", 0) == 0
