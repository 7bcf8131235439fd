"""`bnlab preflight`: one batch before training, with the flags of `bnlab fit`."""

import sys
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from bnlab.cli import commands
from bnlab.cli.advice import advice_for
from bnlab.cli.checks import check_batch_norm, check_weights
from bnlab.cli.run_folder import add_flags
from bnlab.data import ImageDataModule
from bnlab.errors import InputError
from bnlab.files.durable_files import write_durably
from bnlab_callbacks import Preflight, preflight


def run(words: list[str]) -> None:
    """Run the command, given as words.

    Raises:
        SystemExit: with status 1 where something is failing.
    """
    found = commands.run(words, PreflightCLI).trainer.found  # type: ignore[attr-defined]
    if found.verdict == "failing":
        raise SystemExit(1)


class PreflightTrainer(Trainer):
    """A Trainer that looks at the first training batch and trains nothing."""

    found: Preflight | None = None
    advise: Callable[[str, str], str | None] | None = None

    def preflight(
        self,
        model: LightningModule,
        datamodule: ImageDataModule,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        curvature_steps: int = 10,
        json: str | None = None,
    ) -> None:
        """Look at one batch before training, against theory: signals, gradients, first loss, curvature.

        Args:
            model: what would be trained.
            datamodule: where the batch comes from.
            ckpt_path: a checkpoint whose weights to begin with.
            weights_only: as for `torch.load`; None for True, so that no code in the file is run.
            curvature_steps: Hessian-vector products for the largest curvature, each about three training steps; 0:
                none.
            json: A file for the findings, as JSON.
        """
        if ckpt_path:
            checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=weights_only is not False)
            model.load_state_dict(checkpoint["state_dict"])
        device = self.strategy.root_device
        model.to(device)
        datamodule.trainer = self
        batch = next(iter(datamodule.train_dataloader()))
        batch = datamodule.on_before_batch_transfer(batch, 0)
        batch = datamodule.transfer_batch_to_device(batch, device, 0)
        batch = datamodule.on_after_batch_transfer(batch, 0)
        self.found = preflight(model, batch, trainer=self, curvature_steps=curvature_steps, advise=self.advise)
        sys.stdout.write(self.found.table() + "\n")
        if json:
            write_durably(Path(json), dumps(self.found.to_dict(), indent=1, allow_nan=False) + "\n")


class PreflightCLI(commands.BnlabCLI):
    """The parts of a run, built as for `fit`; nothing is written but what `--json` asks for."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """One command, with the arguments that are not flags."""
        return {"preflight": {"model", "datamodule"}}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        self.trainer_class = PreflightTrainer
        super()._add_subcommands(parser, **kwargs)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        add_flags(parser)  # of fit: the same words will do, and these two have no effect
        return parser

    def before_preflight(self) -> None:
        """Check the input, and get the data."""
        assert isinstance(self.trainer, PreflightTrainer)
        self.trainer.advise = advice_for(self.config["preflight"])
        file = self.config["preflight"]["json"]
        if file and not Path(file).parent.is_dir():
            raise InputError(f"--json {file}: there is no folder {Path(file).parent}. Make it, or choose another.")
        synchronisable = self.trainer.strategy.root_device.type != "cpu"
        check_batch_norm(self.config["preflight"], synchronisable=synchronisable)
        if checkpoint := self.config["preflight"]["ckpt_path"]:
            check_weights(checkpoint, self.model, to_train=False)
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
