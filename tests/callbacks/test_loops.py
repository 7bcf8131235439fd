"""What the training loop may do: exceptions and the checkpoints they leave, skipped epochs, no interval at all."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch import Tensor, nn

from bnlab_callbacks import (
    ActivationMonitor,
    BatchNormMonitor,
    Diagnostics,
    EpochTimer,
    GradientMonitor,
    RecordFile,
    TrainingDiagnosis,
    read_records,
)
from tests.callbacks.small_runs import Module, data, hooks_of, loader, memory, mlp, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


SAVES = {"max_epochs": 3, "enable_checkpointing": True}


def kit() -> list[Any]:
    return [GradientMonitor(), ActivationMonitor(), BatchNormMonitor(), TrainingDiagnosis(summary=False)]


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def states(path: Path) -> dict[str, Any]:
    """The callbacks' states in a checkpoint."""
    found: dict[str, Any] = plain(torch.load(path, weights_only=True)["callbacks"])
    return found


def plain(value: Any) -> Any:
    """With lists for tensors, and texts for numbers, so that NaN equals NaN."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return plain(value.tolist()) if isinstance(value, Tensor) else repr(value)


class Raises(pl.Callback):
    """Raises in the fourth batch of the second epoch, in a hook of that name."""

    def __init__(self, hook: str) -> None:
        self.hook = hook
        setattr(self, hook, self.end)

    def end(self, trainer: pl.Trainer, *others: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == 6:
            raise RuntimeError("preempted")


class Saves(pl.Callback):
    """Saves at the end of that batch, or at its start."""

    def __init__(self, hook: str, path: Path) -> None:
        setattr(self, hook, self.save)
        self.path = path

    def save(self, trainer: pl.Trainer, *others: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == 6:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:.*ckpt_path=")  # with OnExceptionCheckpoint Lightning looks for an older one
@pytest.mark.parametrize("first", [True, False], ids=["raises first", "raises last"])
@pytest.mark.parametrize(
    ("raised", "as_saved"),
    [
        ("on_train_batch_start", "on_train_batch_start"),
        ("on_before_backward", "on_train_batch_start"),  # the batch will be trained on again
        ("on_before_zero_grad", "on_train_batch_start"),
        ("on_train_batch_end", "on_train_batch_end"),  # and this one will not
    ],
)
def test_a_checkpoint_on_an_exception_holds_what_one_of_that_moment_holds(
    tmp_path: Path, raised: str, as_saved: str, first: bool
) -> None:
    wanted = trainer(*kit(), Saves(as_saved, tmp_path / "wanted.ckpt"), max_epochs=3)
    wanted.fit(Module(net()), loader(32))
    ours = [Raises(raised), *kit()] if first else [*kit(), Raises(raised)]
    run = trainer(*ours, OnExceptionCheckpoint(tmp_path), **SAVES)
    model = Module(net())
    with pytest.raises(RuntimeError, match="preempted"):
        run.fit(model, loader(32))
    saved, right = states(tmp_path / "on_exception.ckpt"), states(tmp_path / "wanted.ckpt")
    assert right["GradientMonitor"]["means"]
    for name in ("GradientMonitor", "ActivationMonitor", "BatchNormMonitor"):
        assert saved[name] == right[name], name
    assert saved["TrainingDiagnosis"]["recorder"] == right["TrainingDiagnosis"]["recorder"]
    assert hooks_of(model) == []


@pytest.mark.filterwarnings("ignore:.*ckpt_path=")
def test_diagnostics_in_one_callback_hold_the_same(tmp_path: Path) -> None:
    found = []
    for together in (True, False):
        place = tmp_path / str(together)
        callbacks: list[Any] = [Diagnostics(1, folder=str(place))] if together else [*kit(), RecordFile(str(place))]
        run = trainer(*callbacks, Raises("on_before_zero_grad"), OnExceptionCheckpoint(place), **SAVES)
        with pytest.raises(RuntimeError, match="preempted"):
            run.fit(Module(net()), loader(32))
        state = states(place / "on_exception.ckpt")
        found.append(state["Diagnostics"] if together else state)
        steps = [row.step for row in read_records(place / "records.csv") if row.quantity == "act_mean"]
        assert max(steps) == 6  # the one that raised
    for name in ("GradientMonitor", "ActivationMonitor", "BatchNormMonitor"):
        assert found[0][name] == found[1][name], name
    assert found[0]["TrainingDiagnosis"]["recorder"] == found[1]["TrainingDiagnosis"]["recorder"]


def test_a_checkpoint_after_a_fit_holds_the_windows_of_dead_units(tmp_path: Path) -> None:
    run = trainer(*kit(), RecordFile(str(tmp_path)))
    run.fit(Module(net()), loader())
    run.save_checkpoint(tmp_path / "after.ckpt")
    assert states(tmp_path / "after.ckpt")["ActivationMonitor"]["ledgers"]
    assert "'grad_rms/00_net.0'" in states(tmp_path / "after.ckpt")["RecordFile"]["tags"]


@pytest.mark.filterwarnings("ignore:.*ckpt_path=")
def test_a_table_of_records_keeps_its_state_on_an_exception(tmp_path: Path) -> None:
    ours = [RecordFile(str(tmp_path)), GradientMonitor(), Raises("on_train_batch_start")]
    run = trainer(*ours, OnExceptionCheckpoint(tmp_path), **SAVES)
    with pytest.raises(RuntimeError, match="preempted"):
        run.fit(Module(net()), loader(32))
    (path,) = tmp_path.glob("*.ckpt")
    assert "'grad_rms/00_net.0'" in states(path)["RecordFile"]["tags"]


class Breaks(Module):
    """Its third step raises: in the forward pass behind the net, or in the optimizer."""

    def __init__(self, where: str) -> None:
        super().__init__(mlp())
        self.where = where

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self(batch[0])
        if self.where == "forward" and batch_idx == 2:
            raise ArithmeticError("broken")
        return F.mse_loss(out, batch[1])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.where == "optimizer" and self.global_step == 2:
            raise ArithmeticError("broken")


@pytest.mark.parametrize("where", ["forward", "optimizer"])
@pytest.mark.parametrize("file_first", [True, False])
def test_the_step_that_raised_is_recorded(tmp_path: Path, where: str, file_first: bool) -> None:
    callbacks = [GradientMonitor(), ActivationMonitor(), RecordFile(str(tmp_path))]
    run = trainer(*(reversed(callbacks) if file_first else callbacks))
    model = Breaks(where)
    with pytest.raises(ArithmeticError):
        run.fit(model, loader())
    assert memory(run).steps("act_mean/00_net.1") == [0, 1, 2]
    x, y = data()
    outputs = model.net(x[16:])
    first = model.net[1](model.net[0](x[16:]))  # type: ignore[index]
    assert memory(run).series("act_mean/00_net.1")[-1][1] == pytest.approx(float(first.detach().mean()), rel=1e-6)
    gradients = memory(run).series("grad_rms/02_net.4")
    assert [step for step, _ in gradients] == ([0, 1] if where == "forward" else [0, 1, 2])
    if where == "optimizer":
        (gradient,) = torch.autograd.grad(F.mse_loss(outputs, y[16:]), [model.net[4].weight])  # type: ignore[index]
        assert gradients[-1][1] == pytest.approx(float(gradient.square().mean().sqrt()), rel=1e-5)
    rows = [row.step for row in read_records(tmp_path / "records.csv") if row.quantity == "act_mean"]
    assert max(rows) == 2


class Skips(Module):
    """Leaves out the rest of some epochs from a batch on."""

    def __init__(self, skipped: dict[int, int], manual: bool = False) -> None:
        super().__init__(mlp())
        self.skipped, self.automatic_optimization = skipped, not manual

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.skipped.get(self.current_epoch) == batch_idx else None


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_epochs_that_are_skipped_have_no_step_below_0(tmp_path: Path) -> None:
    callbacks = [GradientMonitor(), ActivationMonitor(), EpochTimer(), TrainingDiagnosis(summary=False)]
    run = trainer(*callbacks, RecordFile(str(tmp_path)), max_epochs=4)
    model = Skips({0: 0, 2: 0})
    run.fit(model, loader())
    rows = list(read_records(tmp_path / "records.csv"))
    assert [row.step for row in rows if row.quantity == "time/epoch_s"] == [0, 2, 2, 5]
    assert min(row.step for row in rows) == 0
    assert memory(run).steps("grad_rms/00_net.0") == [0, 1, 2, 3, 4, 5]
    assert hooks_of(model) == []


def test_a_window_that_a_skipped_epoch_cuts_off_is_dropped() -> None:
    """Three batches of eight are a step; of the first epoch two are seen, and the next one begins anew."""
    run = trainer(ActivationMonitor(), GradientMonitor(), max_epochs=2, accumulate_grad_batches=3)
    model = Skips({0: 2})
    run.fit(model, loader(24))
    assert memory(run).series("dead_samples/00_net.1") == [(0, 24.0)]
    first = mlp()[:2](data(24)[0])
    assert memory(run).series("act_mean/00_net.1")[0][1] == pytest.approx(float(first.detach().mean()), rel=1e-6)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("kind", [GradientMonitor, ActivationMonitor, BatchNormMonitor])
@pytest.mark.parametrize("barebones", [True, False])
def test_without_any_interval_a_monitor_says_what_to_set(kind: Any, barebones: bool) -> None:
    options: dict[str, Any] = (
        {"barebones": True, "logger": None, "log_every_n_steps": None, "num_sanity_val_steps": None}
        | dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"))
        if barebones
        else {"log_every_n_steps": 0}
    )
    monitor, model = kind(), Module(net())
    with pytest.warns(UserWarning, match=f"{kind.__name__} is off.*log_every_n_steps is 0.*every_n_steps=50"):
        trainer(monitor, **options).fit(model, loader())
    assert monitor.latest == {}
    assert hooks_of(model) == []
    own = kind(every_n_steps=2)
    trainer(own, **options).fit(Module(net()), loader())
    assert own.latest


def test_smoothness_has_an_interval_of_its_own() -> None:
    monitor = BatchNormMonitor(smoothness_every_n_steps=2)
    run = trainer(monitor, log_every_n_steps=0)
    run.fit(Module(net()), loader())
    assert {tag.partition("/")[0] for tag in monitor.latest} == {"smoothness", "ics_l2", "ics_cos"}
