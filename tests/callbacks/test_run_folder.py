"""Where the files of a run go: the same folder for all callbacks of a fit, and no other fit's."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import nn

from bnlab_callbacks import Diagnostics, EpochTimer, GradientMonitor, LayerHeatmap, RecordFile, TrainingDiagnosis
from tests.callbacks.small_runs import MemoryLogger, Module, loader, mlp, trainer

FILES = ["diagnosis.json", "heatmaps", "records.csv"]
NAME = r"20\d{6}-\d{6}-Module(-\d+)?"


def parts() -> list[Callback]:
    return [TrainingDiagnosis(summary=False), RecordFile(), LayerHeatmap(["grad_rms"]), GradientMonitor()]


def fit(root: Path, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any) -> pl.Trainer:
    run = trainer(*callbacks, **({"default_root_dir": root, "max_epochs": 2} | options))
    run.fit(Module(mlp(nn.BatchNorm1d(5))), loader(), ckpt_path=ckpt_path)
    return run


def runs_in(root: Path) -> list[Path]:
    return sorted((root / "bnlab").iterdir()) if (root / "bnlab").exists() else []


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "dead_units.csv")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("bnlab_callbacks.core.lightning.run_folder.rank_zero_info", lines.append)
    return lines


class Store(MemoryLogger):
    """A logger that lays out its own folder, as MLflow's does."""


Store.__name__ = "MLFlowLogger"


class Shared(MemoryLogger):
    """A logger whose `log_dir` is that of all its runs, as SwanLab's is."""

    name, version = "shared", "one"  # type: ignore[assignment]

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    @property
    def save_dir(self) -> str:
        return str(self.place)

    @property
    def log_dir(self) -> str:
        return str(self.place)


@pytest.mark.parametrize("options", [{"logger": False}, {"logger": MemoryLogger()}, {"logger": Store()}])
def test_without_a_loggers_folder_each_fit_has_its_own(
    options: dict[str, Any], tmp_path: Path, said: list[str]
) -> None:
    for _ in range(2):
        fit(tmp_path, Diagnostics(), **options)
    first, second = runs_in(tmp_path)
    assert re.fullmatch(NAME, first.name)
    assert re.fullmatch(NAME, second.name)
    assert names(first) == names(second) == FILES
    assert sorted(said) == sorted(f"diagnostics of this run: {path}" for path in (first, second))


def test_single_callbacks_share_it_too(tmp_path: Path, said: list[str]) -> None:
    fit(tmp_path, *parts(), EpochTimer(), Diagnostics(without=["LayerHeatmap"]), logger=False)
    (folder,) = runs_in(tmp_path)
    assert names(folder) == FILES
    assert said == [f"diagnostics of this run: {folder}"]


def test_a_barebones_trainer_leaves_a_diagnosis(tmp_path: Path) -> None:
    run = pl.Trainer(barebones=True, max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, callbacks=parts()[:1])
    module = Module(mlp())
    module.log = lambda *_: None  # type: ignore[method-assign, assignment] # which such a Trainer warns of
    run.fit(module, loader())
    (folder,) = runs_in(tmp_path)
    assert names(folder) == ["diagnosis.json"]


def test_a_loggers_folder_comes_first_and_is_said(tmp_path: Path, said: list[str]) -> None:
    table = CSVLogger(tmp_path, "csv")
    fit(tmp_path, *parts(), logger=[MemoryLogger(), table])
    assert set(names(Path(table.log_dir))) >= {*FILES}
    assert said == [f"diagnostics of this run: {table.log_dir}"]
    assert runs_in(tmp_path) == []


def test_a_loggers_folder_for_all_runs_is_divided(tmp_path: Path) -> None:
    fit(tmp_path, *parts(), logger=Shared(tmp_path))
    assert names(tmp_path) == ["shared"]
    assert names(tmp_path / "shared" / "one") == FILES


def test_the_variable_and_the_argument_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setenv("BNLAB_DIR", str(tmp_path / "runs"))
    table = CSVLogger(tmp_path, "csv")
    here = str(tmp_path / "here")
    fit(tmp_path, TrainingDiagnosis(summary=False, folder=here), *parts()[1:], logger=table)
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(NAME, folder.name)
    assert names(folder) == FILES[1:]
    assert names(tmp_path / "here") == FILES[:1]
    assert len(said) == 1
    assert {here, str(folder)} == set(said[0].removeprefix("diagnostics of this run: ").split(", "))
    assert runs_in(tmp_path) == []


def test_checkpoints_are_left_alone_in_their_folder(tmp_path: Path) -> None:
    table = CSVLogger(tmp_path, "csv")
    kept = ModelCheckpoint(dirpath=table.log_dir)
    fit(tmp_path, *parts(), kept, logger=table, enable_checkpointing=True)
    assert not set(FILES) & set(names(Path(table.log_dir)))
    (folder,) = runs_in(tmp_path)
    assert names(folder) == FILES


class Stops(Callback):
    """Saves a checkpoint at a step, and goes on."""

    def __init__(self, file: Path, step: int) -> None:
        self.file, self.step = file, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("kind", [Diagnostics, lambda: TrainingDiagnosis(summary=False), RecordFile])
def test_a_resumed_run_goes_on_in_its_own(kind: Any, tmp_path: Path) -> None:
    saved = tmp_path / "saved.ckpt"
    fit(tmp_path, kind(), Stops(saved, 1), logger=False)
    fit(tmp_path, kind(), logger=False)  # another run
    fit(tmp_path, kind(), logger=False, ckpt_path=saved, max_epochs=3)
    first, _ = runs_in(tmp_path)
    (key,) = [name for name in names(first) if name.startswith(("diagnosis", "records"))][:1]
    assert key in ("diagnosis.json", "records.csv")
    if key == "diagnosis.json":
        assert json.loads((first / key).read_text())["steps"] == 9
    if "records.csv" in names(first):
        with (first / "records.csv").open() as table:
            assert {int(row["epoch"]) for row in csv.DictReader(table)} == {0, 1, 2}


def test_a_trainer_that_trains_on_goes_on_in_its_own(tmp_path: Path) -> None:
    model = Module(mlp())
    run = trainer(*parts(), default_root_dir=tmp_path, logger=False)
    run.fit(model, loader())
    run.fit_loop.max_epochs = 2
    run.fit(model, loader())
    (folder,) = runs_in(tmp_path)
    assert names(folder) == ["diagnosis-2.json", *FILES]


class Tunable(Module):
    """A module whose learning rate and batch size can be searched for."""

    def __init__(self) -> None:
        super().__init__(mlp(), lambda parameters: torch.optim.SGD(parameters, lr=self.lr))
        self.lr, self.batch_size = 0.1, 2

    def val_dataloader(self) -> Any:
        return loader()

    def train_dataloader(self) -> Any:
        return loader(batch_size=self.batch_size)


def test_trials_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # or the finder's bar leaves a thread
    model = Tunable()
    run = trainer(*parts(), default_root_dir=tmp_path, logger=False)
    Tuner(run).lr_find(model, num_training=3)
    Tuner(run).scale_batch_size(model, steps_per_trial=1, max_trials=2)
    trainer(*parts(), default_root_dir=tmp_path, logger=False, fast_dev_run=2).fit(model)
    trainer(Diagnostics(enabled=False), default_root_dir=tmp_path, logger=False).fit(model)
    assert runs_in(tmp_path) == []
    trainer(*parts(), LearningRateFinder(num_training_steps=3), default_root_dir=tmp_path, logger=False).fit(model)
    assert len(runs_in(tmp_path)) == 1


def test_a_run_that_raises_says_where_its_files_are(tmp_path: Path, said: list[str]) -> None:
    class Raises(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyError("mine")

    with pytest.raises(KeyError):
        fit(tmp_path, *parts(), Raises(), logger=False)
    (folder,) = runs_in(tmp_path)
    assert "diagnosis.json" in names(folder)
    assert said == [f"diagnostics of this run: {folder}"]


def test_a_remote_folder_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"RecordFile is off .*say where with folder=… or the variable BNLAB_DIR"):
        fit(tmp_path, RecordFile("s3://bucket/run"))


def test_a_folder_that_cannot_be_made_costs_neither_run_nor_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("no folder can be made in this")
    kept = ModelCheckpoint(tmp_path / "kept", save_last=True)
    with pytest.warns(UserWarning, match="NotADirectoryError|FileExistsError"):
        run = fit(
            root,
            TrainingDiagnosis(summary=False),
            RecordFile(),
            GradientMonitor(),
            kept,
            logger=False,
            enable_checkpointing=True,
        )
    assert run.state.finished
    assert (tmp_path / "kept" / "last.ckpt").exists()


def test_with_a_folder_given_no_other_is_made(tmp_path: Path) -> None:
    given = str(tmp_path / "given")
    each = [TrainingDiagnosis(summary=False, folder=given), RecordFile(given), LayerHeatmap(["grad_rms"], folder=given)]
    fit(tmp_path, *each, GradientMonitor(), ModelCheckpoint(tmp_path / "kept"), logger=False, enable_checkpointing=True)
    assert names(Path(given)) == FILES
    assert runs_in(tmp_path) == []
