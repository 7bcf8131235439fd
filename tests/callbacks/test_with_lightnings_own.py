"""All public callbacks beside Lightning's own and under the Trainer's flags: the same run, and right records."""

import math
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import lightning.pytorch.callbacks as own
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks import (
    ActivationMonitor,
    BatchNormMonitor,
    ChartLayout,
    EpochTimer,
    GradientHistograms,
    GradientMonitor,
    LayerHeatmap,
    RecordFile,
    TrainingDiagnosis,
    read_records,
)
from tests.callbacks.small_runs import data, hooks_of, trainer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:::lightning"),  # what Lightning says of such runs
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Net(pl.LightningModule):
    """A backbone with batch norm and dropout, and a head; it has all that Lightning's callbacks look for."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.05, 8
        self.backbone = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.backbone(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1].to(self.head.weight.dtype))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], self.lr, momentum=0.9)

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*data(32)), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*data(16)), 8)


class Hand(pl.Callback):
    """What is true of each step: which layers have a gradient, and its root mean square."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        assert scaler is None
        self.steps[step] = {
            name.removesuffix("_orig").removesuffix(".weight"): float(each.grad.double().square().mean().sqrt())
            for name, each in pl_module.named_parameters()
            if each.ndim > 1 and each.grad is not None
        }


def kit(folder: Path) -> list[Any]:
    monitors = [GradientMonitor(1), ActivationMonitor(1), BatchNormMonitor(1), EpochTimer()]
    return [*monitors, TrainingDiagnosis(summary=False, folder=str(folder)), RecordFile(str(folder))]


def pictures(folder: Path) -> list[Any]:
    return [LayerHeatmap(folder=str(folder)), ChartLayout(), GradientHistograms()]


CALLBACKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "WeightAveraging": lambda folder: {"callbacks": [own.WeightAveraging()]},
    "StochasticWeightAveraging": lambda folder: {"callbacks": [own.StochasticWeightAveraging(0.02, 1)]},
    "ModelPruning": lambda folder: {"callbacks": [own.ModelPruning("l1_unstructured", amount=0.3)]},
    "LearningRateFinder": lambda folder: {"callbacks": [own.LearningRateFinder(num_training_steps=6)]},
    "BatchSizeFinder": lambda folder: {"callbacks": [own.BatchSizeFinder("power", 1, 8, 1)]},
    "GradientAccumulationScheduler": lambda folder: {"callbacks": [own.GradientAccumulationScheduler({0: 1, 1: 3})]},
    "BackboneFinetuning": lambda folder: {"callbacks": [own.BackboneFinetuning(1)]},
    "OnExceptionCheckpoint": lambda folder: {"callbacks": [own.OnExceptionCheckpoint(folder)], **SAVES},
    "AsyncCheckpointIO": lambda folder: {
        "callbacks": [own.ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1)],
        "plugins": [AsyncCheckpointIO()],
        **SAVES,
    },
    "SpikeDetection": lambda folder: {"callbacks": [own.SpikeDetection(warmup=2)]},
    "Timer": lambda folder: {"callbacks": [own.Timer(timedelta(minutes=5))]},
    "EarlyStopping": lambda folder: {"callbacks": [own.EarlyStopping("val_loss", patience=1)]},
    "LearningRateMonitor": lambda folder: {"callbacks": [own.LearningRateMonitor()]},
    "ModelCheckpoint": lambda folder: {"callbacks": [own.ModelCheckpoint(folder, save_last=True)], **SAVES},
}
SAVES = {"enable_checkpointing": True}
FLAGS: dict[str, dict[str, Any]] = {
    "none": {},
    "accumulate_grad_batches": {"accumulate_grad_batches": 3},
    "gradient_clip_val": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "limit_train_batches": {"limit_train_batches": 0.5, "limit_val_batches": 1},
    "val_check_interval": {"val_check_interval": 2},
    "check_val_every_n_epoch": {"check_val_every_n_epoch": 2},
    "overfit_batches": {"overfit_batches": 2},
    "fast_dev_run": {"fast_dev_run": 2},
    "detect_anomaly": {"detect_anomaly": True},
    "inference_mode": {"inference_mode": False, "num_sanity_val_steps": 2},
    "reload_dataloaders": {"reload_dataloaders_every_n_epochs": 1},
    "max_steps": {"max_steps": 5, "max_epochs": -1},
    "min_epochs": {"min_epochs": 2, "max_epochs": 2},
    "max_time": {"max_time": {"minutes": 5}},
    "profiler": {"profiler": "simple"},
    "barebones": {
        "barebones": True,
        **dict.fromkeys(("logger", "log_every_n_steps", "num_sanity_val_steps")),
        **dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary")),
    },
}


def fit(folder: Path, options: dict[str, Any], before: Any = (), behind: Any = ()) -> tuple[Any, Net, Hand, list[Any]]:
    """A run, and the state that random numbers are left in."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    model, hand = Net(), Hand()
    given = {"logger": TensorBoardLogger(folder, name="tb"), "max_epochs": 3, "callbacks": [], **options}
    given["callbacks"] = [hand, *before, *given["callbacks"], *behind]
    run = trainer(default_root_dir=folder, **given)
    run.fit(model)
    return run, model, hand, [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]


def check(folder: Path, make: Callable[[Path], dict[str, Any]], last: bool) -> None:
    alone, weights, _, numbers = fit(new(folder, "alone"), make(folder))
    place = new(folder, "first")
    options = make(place)
    more = [] if "logger" in options else pictures(place)
    compare(*fit(place, options, before=[*kit(place), *more]), place, alone, weights, numbers)
    if last:
        place = new(folder, "last")
        compare(*fit(place, make(place), behind=kit(place)), place, alone, weights, numbers)


def new(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def compare(
    run: Any, model: Net, hand: Hand, numbers: list[Any], place: Path, alone: Any, usual: Net, same: list[Any]
) -> None:
    assert run.global_step == alone.global_step
    weights = usual.state_dict()
    assert model.state_dict().keys() == weights.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key
    assert numbers == same
    assert hooks_of(model) == []
    assert not any("bnlab" in type(each).__module__ for each in _get_current_function_mode_stack())
    for hooks in (_global_optimizer_pre_hooks, _global_optimizer_post_hooks):
        assert not any("bnlab" in each.__module__ for each in hooks.values())
    diagnosis = next(each for each in run.callbacks if isinstance(each, TrainingDiagnosis))
    assert diagnosis.reason is None or run.global_step < 10, diagnosis.reason
    records(run, place, hand)


def records(run: Any, folder: Path, hand: Hand) -> None:
    """Each step's gradients, and the epochs' means, are those computed by hand."""
    if run.fast_dev_run:  # leaves no files
        assert not (folder / "records.csv").exists()
        return
    rows = list(read_records(folder / "records.csv"))
    found: dict[int, dict[str, float]] = {step: {} for step in hand.steps}
    for row in rows:
        if row.quantity == "grad_rms":
            found[row.step][row.layer.partition("_")[2]] = row.value
    for step, values in hand.steps.items():
        assert found[step] == pytest.approx(values, rel=1e-4), step
    steps = {row.step for row in rows if row.quantity == "act_mean"}
    assert steps == set(hand.steps)
    assert {row.step for row in rows if row.quantity == "bn_drift"} == steps
    assert all(math.isfinite(row.value) for row in rows if row.quantity in ("act_mean", "bn_drift", "grad_rms"))


@pytest.fixture(autouse=True)
def no_thread_of_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The finders have one."""
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)


@pytest.mark.parametrize("name", CALLBACKS)
def test_beside_a_callback_of_lightnings(tmp_path: Path, name: str) -> None:
    if name == "WeightAveraging" and not hasattr(own, name):
        pytest.skip("not in Lightning 2.5")
    check(tmp_path, CALLBACKS[name], last=True)


@pytest.mark.parametrize("name", FLAGS)
def test_under_a_flag_of_the_trainers(tmp_path: Path, name: str) -> None:
    check(tmp_path, lambda folder: dict(FLAGS[name]), last=False)


def test_beside_the_tuner(tmp_path: Path) -> None:
    ends = []
    for watched in (False, True):
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(3)
        model, place = Net(), tmp_path / str(watched)
        place.mkdir()
        callbacks = kit(place) if watched else []
        run = trainer(*callbacks, max_epochs=2, default_root_dir=place, logger=CSVLogger(place))
        tuner = Tuner(run)
        tuner.scale_batch_size(model, steps_per_trial=1, init_val=8, max_trials=1)
        found = tuner.lr_find(model, num_training=6)
        assert found is not None
        run.fit(model)
        ends.append((found.suggestion(), model.batch_size, [each.detach().clone() for each in model.parameters()]))
    assert ends[0][:2] == ends[1][:2]
    for alone, beside in zip(ends[0][2], ends[1][2], strict=True):
        assert torch.equal(alone, beside)
    assert hooks_of(model) == []
    steps = {row.step for row in read_records(place / "records.csv") if row.quantity == "grad_rms"}
    assert steps == set(range(run.global_step))
