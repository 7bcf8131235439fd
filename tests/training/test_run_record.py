"""`run.yaml`, the screen and TensorBoard's HPARAMS page, for every way in which a run can end."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from bnlab import Classifier, ImageDataModule
from bnlab.training import DivergenceStop
from bnlab.training.provenance import git_state, versions
from bnlab.training.run_record import RunRecord, describe, write_yaml

IDENTITY = {"experiment": "mlp_relu", "dataset": "npz", "batch_norm": False, "seed": 3, "split_seed": 5}
FIELDS = {
    "outcome",
    *IDENTITY,
    "argv",
    "samples",
    "parameters",
    "hardware",
    "precision",
    "versions",
    "git",
    "started",
    "ended",
    "val_acc",
    "train_loss",
    "seconds_per_epoch",
}
STEPS = 4  # an epoch of 32 images in batches of 8


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def interrupts_work_again() -> Iterator[None]:
    """Lightning ignores SIGINT for good once it was interrupted."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def data(tmp_path: Path) -> ImageDataModule:
    """36 training images, four of them for validation, and five test images, of two classes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    root.mkdir()
    for name, n in (("train", 36), ("test", 5)):
        images = rng.integers(0, 256, (n, 4, 4), dtype=np.uint8)
        np.savez(root / f"{name}.npz", images=images, labels=np.arange(n) % 2)
    return ImageDataModule("npz", str(root), batch_size=8, val_fraction=0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tb_logs" / "mlp_relu" / "npz-vanilla-seed3" / "version_0"
    folder.mkdir(parents=True)
    return folder


class Raises(Callback):
    """Raises in a training or validation batch of an epoch."""

    def __init__(self, exception: BaseException, epoch: int = 1, batch: int = 2, validation: bool = False) -> None:
        self.exception = exception
        self.where = (epoch, batch, validation)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx, False) == self.where:
            raise self.exception

    def on_validation_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        if (trainer.current_epoch, 0, True) == self.where:
            raise self.exception


class Looks(Callback):
    """Reads run.yaml while the run is on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[dict[str, Any]] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.seen.append(record(self.folder))


class Constant(Classifier):
    """Never gets better in validation."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_acc", 0.25)


class NotANumber(Classifier):
    """Has a loss that is no number from step 5 on."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if self.global_step >= 5 else loss


def model(kind: type[Classifier] = Classifier) -> Classifier:
    return kind(num_classes=2, image_size=(4, 4))


def trainer_with(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"max_epochs": 3, "enable_checkpointing": False, "logger": False}
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[RunRecord(folder, IDENTITY), *callbacks],
        **(defaults | options),
    )


def record(folder: Path) -> dict[str, Any]:
    content = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_a_finished_run_is_recorded_in_full(
    folder: Path, data: ImageDataModule, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bnlab", "fit", "--config", "configs/mlp_relu.yaml"])
    trainer = trainer_with(folder)
    trainer.fit(model(), datamodule=data)

    found = record(folder)
    assert set(found) == FIELDS
    assert found["outcome"] == {"status": "finished", "epochs": 3, "steps": 3 * STEPS}
    assert {name: found[name] for name in IDENTITY} == IDENTITY
    assert found["argv"] == ["bnlab", "fit", "--config", "configs/mlp_relu.yaml"]
    assert found["samples"] == {"train": 32, "val": 4, "test": 5}
    assert found["parameters"] == 16 * 100 + 100 + 2 * (100 * 100 + 100) + 100 * 2 + 2
    assert found["precision"] == "32-true"
    assert found["hardware"]["device"] == "cpu"
    assert found["hardware"]["ranks"] == 1
    assert found["hardware"]["cpus"] == os.cpu_count()
    assert found["hardware"]["threads"] == 1
    assert isinstance(found["hardware"]["name"], str)
    assert found["versions"] == versions()
    assert found["git"] == git_state()
    assert found["val_acc"] == trainer.callback_metrics["val_acc"].item()
    assert found["train_loss"] == trainer.callback_metrics["train_loss"].item()
    assert found["seconds_per_epoch"] > 0
    started, ended = (datetime.fromisoformat(found[name]) for name in ("started", "ended"))
    assert started <= ended
    assert started.tzinfo is not None
    assert list(folder.iterdir()) == [folder / "run.yaml"]  # no temporary file is left

    screen = capsys.readouterr().out
    assert "mlp_relu on npz: finished after 3 epochs\n" in screen
    assert f"validation accuracy  {100 * found['val_acc']:.2f} %\n" in screen
    assert f"seconds per epoch    {found['seconds_per_epoch']:.2f}\n" in screen
    assert f"events               {folder}\n" in screen
    assert f"tensorboard --logdir {folder.parents[2]}\n" in screen
    assert "bnlab test" not in screen  # there is no checkpoint


def test_while_it_runs_the_record_says_so(folder: Path, data: ImageDataModule) -> None:
    looks = Looks(folder)
    trainer_with(folder, looks, max_epochs=1).fit(model(), datamodule=data)
    assert len(looks.seen) == STEPS
    for seen in looks.seen:
        assert seen["outcome"] == {"status": "running"}
        assert seen["ended"] is None
        assert set(seen) == FIELDS - {"val_acc", "train_loss", "seconds_per_epoch"}
    assert record(folder)["started"] == looks.seen[0]["started"]


def test_early_stopping(folder: Path, data: ImageDataModule, capsys: pytest.CaptureFixture[str]) -> None:
    stopping = EarlyStopping("val_acc", mode="max", patience=2)
    trainer_with(folder, stopping, max_epochs=9).fit(model(Constant), datamodule=data)
    reason = "2 epochs without improvement of val_acc"
    found = record(folder)
    assert found["outcome"] == {"status": "early", "epochs": 3, "steps": 3 * STEPS, "reason": reason}
    assert found["val_acc"] == 0.25
    assert f"stopped early at epoch 3: {reason}\n" in capsys.readouterr().out


def test_a_resumed_run_is_not_early_because_it_once_was(folder: Path, data: ImageDataModule, tmp_path: Path) -> None:
    """EarlyStopping's state, `stopped_epoch` included, comes back with the checkpoint."""
    first = trainer_with(folder, EarlyStopping("val_acc", mode="max", patience=1), max_epochs=9)
    first.fit(model(Constant), datamodule=data)
    assert record(folder)["outcome"]["status"] == "early"
    first.save_checkpoint(tmp_path / "early.ckpt")

    class Better(Classifier):
        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.log("val_acc", 0.5 + 0.01 * self.current_epoch)

    resumed = trainer_with(folder, EarlyStopping("val_acc", mode="max", patience=1), max_epochs=4)
    resumed.fit(model(Better), datamodule=data, ckpt_path=tmp_path / "early.ckpt", weights_only=True)
    assert record(folder)["outcome"] == {"status": "finished", "epochs": 4, "steps": 4 * STEPS}


@pytest.mark.parametrize("also_early", [False, True])
def test_divergence_outranks_early_stopping(
    folder: Path, data: ImageDataModule, capsys: pytest.CaptureFixture[str], also_early: bool
) -> None:
    stop = DivergenceStop()
    callbacks: list[Callback] = [stop]
    if also_early:  # a loss that is no number ends it, too
        callbacks.append(EarlyStopping("val_loss", patience=20))
    trainer_with(folder, *callbacks).fit(model(NotANumber), datamodule=data)
    assert stop.divergence is not None
    found = record(folder)
    previous = found["outcome"]["evidence"].pop("previous_loss")
    assert previous == stop.divergence.previous_loss
    assert math.isfinite(previous)
    assert math.isnan(found["outcome"]["evidence"].pop("loss"))
    assert found["outcome"] == {"status": "diverged", "step": 5, "evidence": {}, "epochs": 2, "steps": 2 * STEPS}
    assert math.isnan(found["train_loss"])
    assert "diverged at step 5 (loss nan)\n" in capsys.readouterr().out


@pytest.mark.parametrize("validation", [False, True])
def test_an_interrupt_ends_the_record_and_the_process(
    folder: Path, data: ImageDataModule, capsys: pytest.CaptureFixture[str], validation: bool
) -> None:
    trainer = trainer_with(folder, Raises(KeyboardInterrupt(), validation=validation, batch=0 if validation else 2))
    with pytest.raises(SystemExit) as ended:
        trainer.fit(model(), datamodule=data)
    assert ended.value.code == 1
    found = record(folder)
    steps = 2 * STEPS if validation else STEPS + 2
    assert found["outcome"] == {"status": "interrupted", "epochs": 1, "steps": steps}
    assert set(found) == FIELDS
    assert found["ended"] is not None
    assert 0 <= found["val_acc"] <= 1  # the first epoch's
    assert "mlp_relu on npz: interrupted in epoch 2\n" in capsys.readouterr().out


def test_a_failure_is_recorded_and_raised(
    folder: Path, data: ImageDataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_with(folder, Raises(RuntimeError("out of λ"), epoch=0, batch=1))
    with pytest.raises(RuntimeError, match="out of λ"):
        trainer.fit(model(), datamodule=data)
    found = record(folder)
    outcome = {"status": "failed", "error": "RuntimeError: out of λ", "epochs": 0, "steps": 1}
    assert found["outcome"] == outcome
    # the sanity check's accuracy, of an untrained net, is none
    assert (found["val_acc"], found["train_loss"], found["seconds_per_epoch"]) == (None, None, None)
    screen = capsys.readouterr().out
    assert "failed in epoch 1: RuntimeError: out of λ\n" in screen
    assert "validation accuracy  none yet\n" in screen
    assert "seconds per epoch    none yet\n" in screen


def test_the_screen_names_the_checkpoint_to_test(
    folder: Path, data: ImageDataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = ModelCheckpoint(folder / "checkpoints", "last", save_last=False)
    trainer_with(folder, checkpoint, enable_checkpointing=True, max_epochs=1).fit(model(), datamodule=data)
    path = folder / "checkpoints" / "last.ckpt"
    assert path.is_file()
    assert f"test accuracy        bnlab test --ckpt_path {path}\n" in capsys.readouterr().out


def test_tensorboard_gets_the_results_and_no_hp_metric(folder: Path, data: ImageDataModule) -> None:
    logger = TensorBoardLogger(folder, name=None, version="", default_hp_metric=False)
    trainer = trainer_with(folder, logger=logger, log_every_n_steps=1)
    trainer.fit(model(), datamodule=data)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    assert not [tag for tag in tags if "hp_metric" in tag]
    for name in ("val_acc", "val_loss"):
        (written,) = events.Scalars(f"hp/{name}")
        assert written.step == 3 * STEPS
        assert written.value == trainer.callback_metrics[name].item()
        series = events.Scalars(name)
        assert [event.step for event in series] == [STEPS - 1, 2 * STEPS - 1, 3 * STEPS - 1]
        assert series[-1].value == written.value
    assert [event.step for event in events.Scalars("train_loss_step")] == list(range(3 * STEPS))
    assert [event.value for event in events.Scalars("lr")] == pytest.approx([0.01] * 3)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    write_yaml(path, {"name": "λ ≠ λ/2", "loss": math.inf, "none": None})
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == {"name": "λ ≠ λ/2", "loss": math.inf, "none": None}
    with pytest.raises(yaml.YAMLError):
        write_yaml(path, {"name": object()})  # no plain YAML
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["loss"] == math.inf
    assert list(tmp_path.iterdir()) == [path]

    written: list[tuple[Path, Path]] = []
    replace = os.replace

    def noting(source: Path, target: Path) -> None:
        assert yaml.safe_load(Path(source).read_text(encoding="utf-8")) == {"name": 2}  # whole before it is in place
        assert yaml.safe_load(Path(target).read_text(encoding="utf-8"))["loss"] == math.inf
        written.append((Path(source), Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noting)
    write_yaml(path, {"name": 2})
    assert [(source.parent, target) for source, target in written] == [(tmp_path, path)]
    assert list(tmp_path.iterdir()) == [path]


def test_every_outcome_in_words() -> None:
    assert describe({"status": "finished", "epochs": 100, "steps": 1}) == "finished after 100 epochs"
    assert describe({"status": "interrupted", "epochs": 0, "steps": 1}) == "interrupted in epoch 1"
