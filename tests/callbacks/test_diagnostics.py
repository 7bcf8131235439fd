"""`Diagnostics`: as its parts in every record and file, beside callbacks of the Trainer's own, and over a resume."""

import csv
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

import bnlab_callbacks
from bnlab_callbacks import Diagnostics, EpochTimer, GradientMonitor, TrainingDiagnosis
from tests.callbacks.small_runs import MemoryLogger, Module, hooks_of, loader, mlp, trainer
from tests.callbacks.test_hooks import HOOKS


def net() -> nn.Sequential:
    return mlp(nn.BatchNorm1d(5))


def fit(folder: Path, *callbacks: Callback, **options: Any) -> tuple[pl.Trainer, Module]:
    torch.manual_seed(0)
    module = Module(net())
    options = {"logger": TensorBoardLogger(folder, name="", version="run"), "max_epochs": 3} | options
    ckpt = options.pop("ckpt_path", None)
    run = trainer(*callbacks, default_root_dir=folder, **options)
    run.fit(module, loader(80), loader(8), ckpt_path=ckpt)
    return run, module


def rows(folder: Path) -> list[tuple[str, ...]]:
    """The table without what clocks say."""
    with (folder / "run" / "records.csv").open() as table:
        found = [(row["step"], row["quantity"], row["layer"], row["value"]) for row in csv.DictReader(table)]
    return [row for row in found if not row[1].startswith(("time", "diagnostics"))]


def test_it_records_and_writes_what_its_parts_do(tmp_path: Path) -> None:
    parts = [getattr(bnlab_callbacks, name)() for name in Diagnostics.PARTS]
    (_, apart), (_, together), (_, plain) = (
        fit(tmp_path / "parts", *parts),
        fit(tmp_path / "one", Diagnostics()),
        fit(tmp_path / "none"),
    )
    assert rows(tmp_path / "one") == rows(tmp_path / "parts") != []
    files = [
        sorted(str(path.relative_to(tmp_path / run)) for path in (tmp_path / run).rglob("*") if path.is_file())
        for run in ("parts", "one")
    ]
    names = [[name for name in run if "events" not in name] for run in files]
    assert names[0] == names[1]
    assert any("heatmaps" in name for name in names[1])
    diagnoses = [json.loads((tmp_path / run / "run" / "diagnosis.json").read_text()) for run in ("parts", "one")]
    assert diagnoses[0] == diagnoses[1]
    for first, second, third in zip(apart.parameters(), together.parameters(), plain.parameters(), strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
    assert hooks_of(together) == hooks_of(plain)


def test_it_knows_every_hook_that_a_part_has() -> None:
    parts = [type(part) for part in Diagnostics().parts]
    assert [kind.__name__ for kind in parts] == list(Diagnostics.PARTS)
    had = {hook for kind in parts for hook in HOOKS if getattr(kind, hook) is not getattr(Callback, hook)}
    told = {hook for hook in HOOKS if getattr(Diagnostics, hook) is not getattr(Callback, hook)}
    assert had <= told


class BringsOne(Module):
    """A module with a callback of its own."""

    def configure_callbacks(self) -> list[Callback]:
        return [EpochTimer()]


def test_a_part_stays_away_where_the_trainer_has_its_kind(tmp_path: Path) -> None:
    logger, own, all_in_one = MemoryLogger(), GradientMonitor(every_n_steps=1), Diagnostics(every_n_steps=5)
    run = trainer(all_in_one, own, logger=logger, max_epochs=2, default_root_dir=tmp_path)
    run.fit(BringsOne(net()), loader(80))
    kinds = {type(part).__name__ for part in all_in_one.parts}
    assert not kinds & {"GradientMonitor", "EpochTimer"}
    assert logger.steps("grad_rms/00_net.0") == list(range(20))
    assert logger.steps("act_mean/00_net.1") == [0, 5, 10, 15]
    assert len(logger.series("time/epoch_s")) == 2


def test_a_net_without_batch_norm_is_no_reason_for_a_warning(tmp_path: Path) -> None:
    all_in_one = Diagnostics()
    trainer(all_in_one, logger=False, default_root_dir=tmp_path).fit(Module(mlp()), loader(80))  # a warning would raise
    assert "BatchNormMonitor" not in {type(part).__name__ for part in all_in_one.parts}
    trainer(all_in_one, logger=False, default_root_dir=tmp_path).fit(Module(net()), loader(80))
    assert "BatchNormMonitor" in {type(part).__name__ for part in all_in_one.parts}


class Saves(Callback):
    """A checkpoint after the first epoch."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.file)


def test_a_resumed_run_goes_on_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole, later = Diagnostics(every_n_steps=4), Diagnostics(every_n_steps=4)
    fit(tmp_path / "whole", whole, Saves(tmp_path / "saved.ckpt"))
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    (state,) = saved["callbacks"].values()
    assert {"GradientMonitor", "TrainingDiagnosis", "RecordFile"} <= {key.partition("{")[0] for key in state}
    fit(tmp_path / "later", later, ckpt_path=tmp_path / "saved.ckpt")
    after = [[row for row in rows(tmp_path / name) if int(row[0]) >= 10] for name in ("whole", "later")]
    assert after[0] == after[1] != []
    assert whole.diagnosis is not None
    assert later.diagnosis is not None
    assert later.diagnosis.findings == whole.diagnosis.findings
    assert later.diagnosis.facts == whole.diagnosis.facts


def test_a_folder_and_parts_may_be_chosen(tmp_path: Path) -> None:
    all_in_one = Diagnostics(folder=str(tmp_path / "here"), without=("LayerHeatmap", "ActivationMonitor"), stop=True)
    trainer(all_in_one, logger=CSVLogger(tmp_path), default_root_dir=tmp_path).fit(Module(net()), loader(80))
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["diagnosis.json", "records.csv"]
    assert {type(part) for part in all_in_one.parts}.isdisjoint({bnlab_callbacks.ActivationMonitor})
    assert isinstance(all_in_one.diagnosis, TrainingDiagnosis)
    assert all_in_one.diagnosis.stop


def test_it_can_be_off(tmp_path: Path) -> None:
    logger, off = MemoryLogger(), Diagnostics(enabled=False)
    trainer(off, logger=logger, default_root_dir=tmp_path).fit(Module(net()), loader(80))
    assert logger.tags() <= {"train_loss", "epoch"}
    assert off.diagnosis is None


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="no such part; there are GradientMonitor, ActivationMonitor"):
        Diagnostics(without=["Gradients"])
    with pytest.raises(ValueError, match="every_n_steps=0 is below 1"):
        Diagnostics(every_n_steps=0)
