"""In batches that leave nothing, Lightning does not call the callbacks' hooks, and modules carry none."""

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab_callbacks import ActivationMonitor, BatchNormMonitor, GradientMonitor, TrainingDiagnosis
from bnlab_callbacks.core.lightning.monitor import Monitor
from tests.callbacks.small_runs import Module, hooks_of, loader, memory, mlp, trainer

Kind = Callable[[], Any]
KINDS: dict[str, Kind] = {
    "gradients": lambda: GradientMonitor(4),
    "activations": lambda: ActivationMonitor(4),
    "batch norm": lambda: BatchNormMonitor(4),
    "diagnosis": lambda: TrainingDiagnosis(1, 4, summary=False),
}


def net() -> nn.Sequential:
    return mlp(nn.BatchNorm1d(5))


class Looks(pl.Callback):
    """Notes in every batch, before the backward pass, which hooks are passed over, and how many the net has."""

    def __init__(self, watched: Any) -> None:
        self.watched = watched
        self.passed_over: list[int] = []
        self.on_modules: list[int] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self.passed_over.append(sum(getattr(self.watched, name) is None for name in self.watched.idle_hooks))
        self.on_modules.append(len(hooks_of(pl_module)))


def run_with(watched: Any, samples: int = 80, **options: Any) -> Looks:
    """Ten batches of 8 an epoch, or as told."""
    looks = Looks(watched)
    trainer(watched, looks, **options).fit(Module(net()), loader(samples))
    assert not any(name in vars(watched) for name in watched.idle_hooks)
    return looks


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_are_called_in_recorded_steps_only(kind: str) -> None:
    looks = run_with(KINDS[kind](), max_epochs=2)
    idle = [step for step, hooks in enumerate(looks.passed_over) if hooks]
    recorded = [0, 4, 8, 10, 12, 16]
    if kind == "diagnosis":  # every fourth step, whatever the epoch
        recorded = [0, 4, 8, 12, 16]
    assert set(range(20)) - set(idle) == set(recorded)
    assert all(looks.passed_over[step] == len(looks.watched.idle_hooks) for step in idle)
    assert all(looks.on_modules[step] == 0 for step in idle)
    if kind != "gradients":  # which has hooks in the first step only
        assert all(looks.on_modules[step] > 0 for step in recorded)


@pytest.mark.parametrize("kind", ["gradients", "activations", "batch norm"])
def test_accumulated_batches_of_a_recorded_step_are_all_awake(kind: str) -> None:
    looks = run_with(KINDS[kind](), accumulate_grad_batches=2)  # steps 0 to 4, of two batches
    assert [bool(hooks) for hooks in looks.passed_over] == [False] * 2 + [True] * 6 + [False] * 2


def test_the_diagnosis_is_awake_in_all_batches_of_a_step_that_it_looks_at() -> None:
    looks = run_with(KINDS["diagnosis"](), accumulate_grad_batches=2)
    # woken at the end of the first batch of the step before it
    assert [bool(hooks) for hooks in looks.passed_over] == [False] * 2 + [True] * 5 + [False] * 3


class Counts(GradientMonitor):
    """Somebody's own monitor, which does something at each batch."""

    calls = 0

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.calls += 1
        super().on_train_batch_end(*arguments)


class CountsInside(ActivationMonitor):
    """Another one, with a method that this package's hooks call."""

    calls = 0

    def before_batch(self, trainer: pl.Trainer) -> None:
        self.calls += 1
        super().before_batch(trainer)


@pytest.mark.parametrize("kind", [Counts, CountsInside])
def test_a_subclass_is_called_in_every_batch(kind: Any) -> None:
    watched = kind(4)
    assert not any(run_with(watched).passed_over)
    assert watched.calls == 10


def test_a_hook_that_was_replaced_is_called_in_every_batch_and_stays() -> None:
    monitor, calls = GradientMonitor(4), []
    inner = monitor.on_train_batch_end

    def outer(*arguments: Any) -> None:
        calls.append(1)
        inner(*arguments)

    monitor.on_train_batch_end = outer  # type: ignore[method-assign]
    trainer(monitor).fit(Module(net()), loader(80))
    assert len(calls) == 10
    assert vars(monitor)["on_train_batch_end"] is outer


def test_a_hook_that_is_replaced_during_a_run_is_called_from_then_on() -> None:
    calls = []

    class Replaces(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            if trainer.global_step == 8:  # a recorded step, in which the hook is there
                inner = monitor.on_train_batch_end
                monitor.on_train_batch_end = lambda *arguments: (calls.append(1), inner(*arguments))  # type: ignore

    monitor = GradientMonitor(4)
    run = trainer(monitor, Replaces(), max_epochs=2)
    run.fit(Module(net()), loader(80))
    assert len(calls) == 12
    assert set(memory(run).steps("grad_rms/00_net.0")) == {0, 4, 8, 10, 12, 16}


class Composite(pl.Callback):
    """Calls a monitor that the Trainer does not know of."""

    def __init__(self, inner: Monitor) -> None:
        self.inner = inner


def passes_on(hook: str) -> Any:
    return lambda self, *arguments, **named: getattr(self.inner, hook)(*arguments, **named)


ITS_OWN = ("setup", "on_fit_start", "on_train_epoch_start", "on_train_epoch_end", "on_fit_end", "on_train_batch_start")
for hook in (*ITS_OWN, *ActivationMonitor.idle_hooks):
    setattr(Composite, hook, passes_on(hook))


def test_a_monitor_that_others_call_is_never_without_hooks() -> None:
    inside, outside = ActivationMonitor(4), ActivationMonitor(4)
    runs = trainer(Composite(inside)), trainer(outside)
    for run in runs:
        run.fit(Module(net()), loader(80))
    tags = {"act_mean/00_net.1", "sat_frac/01_net.4", "act_mean_epoch/00_net.1"}
    assert tags <= memory(runs[0]).tags()
    for tag in tags:
        assert memory(runs[0]).series(tag) == memory(runs[1]).series(tag)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_on_the_way_to_rest_ends_the_diagnostic_and_not_the_run(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> int:
        raise RuntimeError("boom")

    monkeypatch.setattr("bnlab_callbacks.core.schedule.RecordSchedule.next_step", fails)
    monkeypatch.setattr("bnlab_callbacks.diagnosis.watching.step_recorder.StepRecorder.rests_until", fails)
    run = trainer(KINDS[kind](), max_epochs=2)
    with pytest.warns(UserWarning, match="is off for the rest of this run: RuntimeError: boom"):
        run.fit(Module(net()), loader(80))
    assert run.global_step == 20


class Breaks(Module):
    """Fails in a batch that is not recorded."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 6:
            raise RuntimeError("boom")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_run_that_broke_off_the_hooks_are_there(kind: str) -> None:
    watched, model = KINDS[kind](), Breaks(net())
    with pytest.raises(RuntimeError, match="boom"):
        trainer(watched).fit(model, loader(80))
    assert not any(name in vars(watched) for name in watched.idle_hooks)
    assert hooks_of(model) == []
    assert any(run_with(watched).passed_over)  # and a second run is as the first


def test_a_copy_made_in_an_idle_batch_works_as_the_original() -> None:
    copies: list[GradientMonitor] = []

    class Copies(pl.Callback):
        def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
            if trainer.global_step == 2:
                assert watched.on_train_batch_end is None
                for bound in ("log", "log_dict"):  # Lightning's, to the module
                    vars(watched).pop(bound, None)
                copies.append(copy.deepcopy(watched))

    watched = GradientMonitor(4)
    trainer(watched, Copies()).fit(Module(net()), loader(80))
    runs = trainer(copies[0]), trainer(GradientMonitor(4))
    for run in runs:
        run.fit(Module(net()), loader(80))
    assert memory(runs[0]).series("grad_rms/00_net.0") == memory(runs[1]).series("grad_rms/00_net.0")


class TwoOptimizers(Module):
    """The second optimizer's first step is in a batch in which the first one's is not recorded."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)]))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        x, y = batch
        one, two = self.optimizers()  # type: ignore[misc]
        for index, optimizer in ((0, one), (1, two)):
            if index == 0 or batch_idx >= 2:
                optimizer.zero_grad()
                self.manual_backward(F.mse_loss(self.net[index](x), y))  # type: ignore[index]
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), 0.1) for part in self.net]  # type: ignore[union-attr]


def test_an_optimizer_that_starts_late_is_recorded_at_its_first_step() -> None:
    run = trainer(GradientMonitor(4))
    run.fit(TwoOptimizers(), loader(80))
    first, second = (set(memory(run).steps(f"grad_rms/{layer}")) for layer in ("00_net.0", "01_net.1"))
    assert first == {0, 4, 8}
    assert second == {2, 4, 8}


@pytest.mark.parametrize("kind", ["activations", "batch norm", "diagnosis"])
def test_hooks_that_a_compiler_saw_stay_on_their_modules(kind: str) -> None:
    torch._dynamo.reset()
    watched = KINDS[kind]()
    looks = Looks(watched)
    compiled: Any = torch.compile(net(), backend="eager")
    trainer(watched, looks).fit(Module(compiled), loader(80))
    assert any(looks.passed_over)
    assert len(set(looks.on_modules[1:])) == 1  # but those that look for the order of execution in the first step
    assert looks.on_modules[1] > 0
    torch._dynamo.reset()


def test_what_is_logged_is_the_same_with_and_without_idle_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def series(diagnosis: bool) -> dict[str, Any]:
        watched = [make() for make in KINDS.values()][: 4 if diagnosis else 3]
        run = trainer(*watched, max_epochs=3)
        run.fit(Module(net()), loader(80), loader(16))
        return {tag: memory(run).series(tag) for tag in memory(run).tags() - {"diagnostics/overhead_frac"}}

    resting = series(diagnosis=True)
    monkeypatch.setattr("bnlab_callbacks.core.lightning.monitor.can_be_idle", lambda *_: False)
    monkeypatch.setattr("bnlab_callbacks.diagnosis.training_diagnosis.can_be_idle", lambda *_: False)
    assert resting == series(diagnosis=True) == series(diagnosis=False)
    assert len(resting) > 30
