"""What reaches the loggers, at which step and at which cost; checkpoints and resumed runs."""

import csv
import importlib
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor
from bnlab_callbacks.core.lightning.publisher import publisher_of
from bnlab_callbacks.core.records import Record
from tests.callbacks.small_runs import (
    MemoryLogger,
    Module,
    as_on_an_accelerator,
    hooks_of,
    loader,
    memory,
    mlp,
    trainer,
)

Series = dict[str, list[tuple[int, float]]]


def all_three() -> list[Any]:
    return [GradientMonitor(), ActivationMonitor(), EpochTimer()]


def events(folder: str | Path) -> Series:
    """Every scalar of an event file: tag → [(step, value)]."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


class AddScalar(TensorBoardLogger):
    """Forces Lightning's own way, one `add_scalar` after the other."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)


def test_packed_events_read_back_like_add_scalars(tmp_path: Path) -> None:
    read = []
    for kind in (TensorBoardLogger, AddScalar):
        logger = kind(tmp_path, name=kind.__name__, version=0)
        callbacks = all_three()[:2]
        trainer(*callbacks, logger=logger, max_epochs=2).fit(Module(mlp()), loader(), loader(8))
        read.append(events(logger.log_dir))
    for one in read:  # a measured time
        del one["diagnostics/overhead_frac"]
    assert read[0] == read[1]
    assert len([tag for tag in read[0] if tag.startswith("grad_rms/")]) == 3


def test_tensorboards_steps_agree_with_the_losses(tmp_path: Path) -> None:
    """Epoch values stand at the epoch's last step, where `self.log` puts the validation loss."""
    logger = TensorBoardLogger(tmp_path, name="", version="")
    callbacks = all_three()
    trainer(*callbacks, logger=logger, max_epochs=3, accumulate_grad_batches=2).fit(
        Module(mlp()), loader(batch_size=4), loader(8)
    )
    read = events(logger.log_dir)
    steps = {tag: [step for step, _ in series] for tag, series in read.items()}
    assert steps["val_loss"] == [2, 5, 8]
    for tag in ("grad_rms_epoch/00_net.0", "act_mean_epoch/00_net.1", "dead_frac_epoch/00_net.1", "time/epoch_s"):
        assert steps[tag] == steps["val_loss"]
    for tag in ("grad_rms/00_net.0", "act_mean/00_net.1", "update_ratio/02_net.4"):
        assert steps[tag] == sorted(set(steps["train_loss"])) == list(range(9))
    last = {tag: series[-1][1] for tag, series in read.items()}
    for tag, value in callbacks[0].latest.items():
        assert last[tag] == pytest.approx(value, rel=1e-6)


def test_tensorboards_prefix_is_respected(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="", prefix="mine")
    trainer(*all_three(), logger=logger).fit(Module(mlp()), loader())
    assert {"mine-grad_rms/00_net.0", "mine-act_mean/00_net.1", "mine-time/epoch_s"} <= events(logger.log_dir).keys()


def test_infinite_and_missing_values_reach_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    run = trainer(logger=logger)
    publisher_of(run).publish(run, Record(7, 0, 1.5e9, {"a": -math.inf, "b": math.nan, "c": 1e300}))
    logger.finalize("success")
    read = events(logger.log_dir)
    assert read["a"] == [(7, -math.inf)]
    assert math.isnan(read["b"][0][1])
    assert read["c"] == [(7, math.inf)]  # TensorBoard's scalars are float32


def test_a_subclass_with_its_own_log_metrics_is_asked(tmp_path: Path) -> None:
    seen: Series = defaultdict(list)

    class Own(TensorBoardLogger):
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            for tag, value in metrics.items():
                seen[tag].append((step or 0, value))

    trainer(*all_three(), logger=Own(tmp_path)).fit(Module(mlp()), loader())
    assert [step for step, _ in seen["grad_rms/00_net.0"]] == [0, 1, 2]
    assert "act_mean/00_net.1" in seen
    assert "time/train_s" in seen


@pytest.mark.parametrize("variant", ["none", "tensorboard", "csv", "both", "fast_dev_run"])
def test_every_kind_of_logger_works(variant: str, tmp_path: Path) -> None:
    """None, one, two, and one that `fast_dev_run` replaces."""
    tensorboard, table = TensorBoardLogger(tmp_path, "tb", 0), CSVLogger(tmp_path, "csv", 0)
    options: dict[str, Any] = {
        "none": {"logger": False},
        "tensorboard": {"logger": tensorboard},
        "csv": {"logger": table},
        "both": {"logger": [tensorboard, table]},
        "fast_dev_run": {"logger": tensorboard, "fast_dev_run": 2},
    }[variant]
    callbacks = all_three()
    run = trainer(*callbacks, default_root_dir=tmp_path, **options)
    run.fit(Module(mlp()), loader(), loader(8))
    assert all(callback.latest for callback in callbacks)
    assert {"grad_rms_epoch/00_net.0", "act_mean_epoch/00_net.1", "time/epoch_s"} <= run.callback_metrics.keys()
    tags = {"grad_rms/00_net.0", "act_mean/00_net.1", "time/epoch_s", "grad_rms_epoch/00_net.0"}
    if variant in ("tensorboard", "both"):
        assert tags <= events(tensorboard.log_dir).keys()
    if variant in ("csv", "both"):
        assert tags <= rows(Path(table.log_dir) / "metrics.csv")[0].keys()
    if variant in ("none", "fast_dev_run"):
        assert not list(tmp_path.rglob("*events*"))
        assert not list(tmp_path.rglob("*.csv"))


def test_every_tag_is_there_from_the_first_record_on(tmp_path: Path) -> None:
    """A new column makes CSVLogger rewrite its file."""
    table = CSVLogger(tmp_path, "csv", 0, flush_logs_every_n_steps=1)
    trainer(*all_three(), logger=[table, MemoryLogger()], max_epochs=3).fit(Module(mlp()), loader())
    filled = [
        (row["step"], frozenset(tag for tag, value in row.items() if value and ("/" in tag)))
        for row in rows(Path(table.log_dir) / "metrics.csv")
    ]
    for first, records in [
        ("grad_rms/00_net.0", 9),
        ("act_mean/00_net.1", 9),
        ("grad_rms_epoch/00_net.0", 3),
        ("act_mean_epoch/00_net.1", 3),
        ("time/epoch_s", 3),
    ]:
        rows_of_one_kind = [tags for _, tags in filled if first in tags]
        assert len(rows_of_one_kind) == records
        assert len(set(rows_of_one_kind)) == 1


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: values read one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("depth", [2, 12])
def test_records_of_gradients_are_one_copy_to_the_host(depth: int, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all records that are published together, here three or two."""
    copies = as_on_an_accelerator(monkeypatch)
    monitor = GradientMonitor(every)
    counts = count_reads(monitor, ["on_before_optimizer_step", "on_train_batch_end"], monkeypatch)
    run = trainer(monitor)
    run.fit(Module(nn.Sequential(*(nn.Linear(6, 6) for _ in range(depth)), nn.Linear(6, 3))), loader())
    assert copies == [7 * (depth + 1) * (3 if every == 1 else 2)]
    assert counts == [0] * 6


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("depth", [2, 12])
def test_records_of_activations_are_one_copy_to_the_host(
    depth: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read before all layers' sums of all records at hand lie in one vector."""
    copies, reads = as_on_an_accelerator(monkeypatch), Reads()

    class Watched(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            with reads:
                return F.mse_loss(self(batch[0]), batch[1])

    monitor = ActivationMonitor(every)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(6, 6), nn.ReLU(), nn.Sigmoid())]
    trainer(monitor).fit(Watched(nn.Sequential(*layers, nn.Linear(6, 3))), loader())
    assert len([tag for tag in monitor.latest if tag.startswith("act_mean/")]) == 2 * depth
    assert copies == [(8 + 9) * depth * (3 if every == 1 else 2)]
    assert reads.count == 0


def count_reads(callback: Any, hooks: list[str], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []

    def counting(original: Any) -> Any:
        def hook(*args: Any, **kwargs: Any) -> None:
            with Reads() as reads:
                original(*args, **kwargs)
            counts.append(reads.count)

        return hook

    for name in hooks:
        monkeypatch.setattr(callback, name, counting(getattr(callback, name)))
    return counts


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_both_of_lightnings_names_work(package: str, tmp_path: Path) -> None:
    pl = importlib.import_module(package)
    if not issubclass(GradientMonitor, pl.Callback) and pl.__version__ < "2.6":
        pytest.skip("before 2.6 a Trainer refuses callbacks of the other package")
    loggers = importlib.import_module(f"{package}.loggers")

    class Own(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = F.mse_loss(self.net(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callbacks = all_three()
    run = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        log_every_n_steps=1,
        logger=loggers.TensorBoardLogger(tmp_path, name="", version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=callbacks,
    )
    run.fit(Own(), loader())
    read = events(tmp_path)
    assert [step for step, _ in read["grad_rms/00_net.0"]] == list(range(6))
    assert [step for step, _ in read["act_mean/00_net.1"]] == list(range(6))
    assert [step for step, _ in read["time/epoch_s"]] == [2, 5]
    plain = trainer(GradientMonitor(), max_epochs=2)
    plain.fit(Module(mlp()), loader())
    assert [value for _, value in read["grad_rms/00_net.0"]] == pytest.approx(
        [value for _, value in memory(plain).series("grad_rms/00_net.0")], rel=1e-6
    )


def test_early_stopping_and_checkpoints_see_the_epochs_values(tmp_path: Path) -> None:
    stop = EarlyStopping(
        "grad_rms_epoch/00_net.0", patience=1, mode="max", min_delta=1e9, check_on_train_epoch_end=True
    )
    keep = ModelCheckpoint(tmp_path, monitor="act_mean_epoch/00_net.1", save_on_train_epoch_end=True)
    run = trainer(*all_three(), stop, keep, max_epochs=10, enable_checkpointing=True)
    run.fit(Module(mlp()), loader())
    assert run.current_epoch == 2
    assert float(keep.best_model_score) == pytest.approx(  # type: ignore[arg-type]
        min(value for _, value in memory(run).series("act_mean_epoch/00_net.1"))
    )


def fit_with_checkpoints(folder: Path, epochs: int, resume: Path | None = None, every: int = 2) -> MemoryLogger:
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    callbacks = [GradientMonitor(every), ActivationMonitor(every), EpochTimer()]
    run = trainer(*callbacks, keep, max_epochs=epochs, enable_checkpointing=True)
    run.fit(Module(mlp()), loader(40), ckpt_path=resume, weights_only=True if resume else None)
    return memory(run)


def test_checkpoints_load_with_weights_only(tmp_path: Path) -> None:
    """Lightning loads them so, and refuses anything but primitives and tensors then."""
    fit_with_checkpoints(tmp_path, 1)
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    for name in ("GradientMonitor", "ActivationMonitor"):
        assert saved["callbacks"][name]["schedule"]["recorded"]


@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # what is tested
    "ignore:The dirpath has changed",  # the two runs' folders differ
)
@pytest.mark.parametrize("step", [1, 2, 3, 5, 8])
def test_a_resumed_run_records_the_steps_of_the_undisturbed_one(step: int, tmp_path: Path) -> None:
    whole = fit_with_checkpoints(tmp_path / "whole", 3)
    rest = fit_with_checkpoints(tmp_path / "rest", 3, tmp_path / "whole" / f"step={step}.ckpt")
    for tag in ("grad_rms/00_net.0", "act_mean/00_net.1"):
        assert whole.steps(tag) == [0, 2, 4, 5, 6, 8, 10, 12, 14]
        assert rest.steps(tag) == [each for each in whole.steps(tag) if each is not None and each >= step]


def test_ranks_beside_the_first_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLogger()
    run = trainer(logger=log)
    monkeypatch.setattr(type(run), "is_global_zero", False)
    publisher_of(run).publish(run, Record(0, 0, 1.5e9, {"a": 1.0}))
    assert log.rows == []


def test_validating_testing_and_a_second_fit_go_well_and_count_nothing_twice() -> None:
    class Whole(Module):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.validation_step(batch, batch_idx)

    callbacks = all_three()
    model = Whole(mlp())
    run = trainer(*callbacks)
    run.validate(model, loader(), verbose=False)
    assert not any(callback.latest for callback in callbacks)
    run.fit(model, loader())
    run.test(model, loader(), verbose=False)
    run.predict(model, loader().dataset.tensors[0].split(8))  # type: ignore[attr-defined]
    assert run.max_epochs == 1
    run.fit_loop.max_epochs = 2
    run.fit(model, loader())
    for tag in ("grad_rms/00_net.0", "act_mean/00_net.1"):
        assert memory(run).steps(tag) == list(range(6))
    assert memory(run).steps("time/epoch_s") == [2, 5]
    assert hooks_of(model) == []


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the two runs' folders differ
def test_an_epoch_that_a_checkpoint_cut_off_after_its_last_batch_is_ended_by_the_resumed_run(tmp_path: Path) -> None:
    """Lightning starts such a run with the next epoch, and calls neither that one's start nor the old one's end."""
    whole = fit_with_checkpoints(tmp_path / "whole", 2, every=1)
    rest = fit_with_checkpoints(tmp_path / "rest", 2, tmp_path / "whole" / "step=5.ckpt", every=1)
    for tag in ("grad_rms_epoch/00_net.0", "act_absmax_epoch/00_net.1", "dead_samples_epoch/00_net.1"):
        assert rest.series(tag) == whole.series(tag)
        assert rest.steps(tag) == [4, 9]


def test_records_of_a_monitor_with_a_budget_are_read_together_beside_one_that_records_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies = as_on_an_accelerator(monkeypatch)
    callbacks = [GradientMonitor(20, budget=1e9), ActivationMonitor(1, budget=1e9)]
    trainer(*callbacks).fit(Module(mlp()), loader(8 * 40))
    assert len(copies) == 3  # the first records by themselves, then 32, and the rest
