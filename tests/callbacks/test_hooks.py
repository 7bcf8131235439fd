"""Lightning's hooks are there in every callback and at every moment; modules carry hooks in recorded steps only."""

import inspect
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnlab_callbacks
from bnlab_callbacks import ActivationMonitor, AttentionMonitor, BatchNormMonitor, GradientMonitor, TrainingDiagnosis
from tests.callbacks.small_runs import Module, hooks_of, loader, memory, mlp, trainer

# the net has no attention, and no batches are accumulated
pytestmark = [
    pytest.mark.filterwarnings("ignore:AttentionMonitor has recorded nothing"),
    pytest.mark.filterwarnings("ignore:GradientNoise had nothing to compare"),
]

HOOKS = sorted(
    name
    for name, function in vars(pl.Callback).items()
    if inspect.isfunction(function) and (name.startswith("on_") or name in ("setup", "teardown"))
)
CALLBACKS: dict[str, Callable[..., Any]] = {
    name: kind
    for name in bnlab_callbacks.__all__
    if isinstance(kind := getattr(bnlab_callbacks, name), type) and issubclass(kind, pl.Callback)
}
RECORDING: dict[str, Callable[[], Any]] = {
    "gradients": lambda: GradientMonitor(4),
    "activations": lambda: ActivationMonitor(4),
    "attention": lambda: AttentionMonitor(4),
    "batch norm": lambda: BatchNormMonitor(4),
    "diagnosis": lambda: TrainingDiagnosis(1, 4, summary=False),
}


def net() -> nn.Sequential:
    return mlp(nn.BatchNorm1d(5))


def passes_on(hook: str, calls: set[str]) -> Any:
    def call(self: Any, *given: Any, **named: Any) -> None:
        calls.add(hook)
        getattr(super(type(self), self), hook)(*given, **named)

    return call


def delegates(hook: str, calls: set[str]) -> Any:
    def call(self: Any, *given: Any, **named: Any) -> None:
        calls.add(hook)
        getattr(self.inner, hook)(*given, **named)

    return call


def test_there_are_hooks() -> None:
    assert len(HOOKS) > 30
    assert len(CALLBACKS) >= 9


@pytest.mark.filterwarnings("ignore:.*is off for the rest of this run")  # ChartLayout without TensorBoard
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_subclass_may_call_super_in_every_hook(name: str, tmp_path: Any) -> None:
    calls: set[str] = set()
    kind: Any = type("Own", (CALLBACKS[name],), {hook: passes_on(hook, calls) for hook in HOOKS})
    run = trainer(kind(), max_epochs=2, default_root_dir=tmp_path)
    run.fit(Module(net()), loader(80), loader(8))
    assert run.global_step == 20
    assert {"on_before_zero_grad", "on_before_backward", "on_train_batch_end", "on_validation_batch_end"} <= calls


@pytest.mark.filterwarnings("ignore:.*is off for the rest of this run")
@pytest.mark.parametrize("name", CALLBACKS)
def test_another_callback_may_pass_every_hook_on(name: str, tmp_path: Any) -> None:
    calls: set[str] = set()
    kind: Any = type("Delegates", (pl.Callback,), {hook: delegates(hook, calls) for hook in HOOKS})
    wrapper = kind()
    wrapper.inner = CALLBACKS[name]()
    run = trainer(wrapper, max_epochs=2, default_root_dir=tmp_path)
    run.fit(Module(net()), loader(80), loader(8))
    assert run.global_step == 20
    if name == "ActivationMonitor":  # what it logs is what it would log by itself
        alone = trainer(ActivationMonitor(), max_epochs=2)
        alone.fit(Module(net()), loader(80), loader(8))
        for tag in ("act_mean/00_net.1", "sat_frac/01_net.4", "act_mean_epoch/00_net.1"):
            assert memory(run).series(tag) == memory(alone).series(tag) != []


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_can_be_called_by_itself(name: str, hook: str) -> None:
    """As by a mocked Trainer in the tests of somebody's project: before `fit`, each hook is there and harmless."""
    callback = CALLBACKS[name]()
    function = getattr(callback, hook)
    names = list(inspect.signature(function).parameters)
    given = {parameter: MagicMock() for parameter in names}
    given |= {"stage": "validate", "trainer": trainer(logger=False)} if "trainer" in given else {}
    given |= {"pl_module": Module(net())} if "pl_module" in given else {}
    given = {parameter: value for parameter, value in given.items() if parameter in names}
    if hook in ("on_fit_start", "on_save_checkpoint"):
        given["trainer"].strategy.connect(given["pl_module"])
    function(**given)
    callback.teardown(given["trainer"], given["pl_module"], "fit")
    assert hooks_of(given["pl_module"]) == []


class Looks(pl.Callback):
    """Notes in every batch, before the backward pass, how many hooks the module has, or what is compiled in it."""

    def __init__(self) -> None:
        self.on_modules: list[int] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self.on_modules.append(len(hooks_of(getattr(pl_module.net, "_orig_mod", pl_module))))


def run_with(watched: Any, samples: int = 80, **options: Any) -> list[int]:
    """Ten batches of 8 an epoch, or as told."""
    looks = Looks()
    trainer(watched, looks, **options).fit(Module(net()), loader(samples))
    return looks.on_modules


@pytest.mark.parametrize("kind", RECORDING)
def test_modules_carry_hooks_in_recorded_steps_only(kind: str) -> None:
    on_modules = run_with(RECORDING[kind](), max_epochs=2)
    recorded = {0, 4, 8, 10, 12, 16}
    if kind == "diagnosis":  # every fourth step, whatever the epoch
        recorded = {0, 4, 8, 12, 16}
    if kind == "gradients":  # which look for the order of execution, once
        recorded = {0}
    assert {step for step, hooks in enumerate(on_modules) if hooks} == recorded


@pytest.mark.parametrize("kind", ["activations", "batch norm", "diagnosis"])
def test_modules_carry_hooks_in_all_accumulated_batches_of_a_recorded_step(kind: str) -> None:
    on_modules = run_with(RECORDING[kind](), accumulate_grad_batches=2)  # steps 0 to 4, of two batches
    assert [bool(hooks) for hooks in on_modules] == [True] * 2 + [False] * 6 + [True] * 2


@pytest.mark.parametrize("kind", ["activations", "batch norm", "diagnosis"])
def test_hooks_that_a_compiler_saw_stay_on_their_modules(kind: str) -> None:
    torch._dynamo.reset()
    looks = Looks()
    compiled: Any = torch.compile(net(), backend="eager")
    trainer(RECORDING[kind](), looks).fit(Module(compiled), loader(80))
    assert len(set(looks.on_modules[1:])) == 1  # but those that look for the order of execution in the first step
    assert looks.on_modules[1] > 0
    torch._dynamo.reset()


class Breaks(Module):
    """Fails in a batch that is not recorded."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 6:
            raise RuntimeError("boom")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", RECORDING)
def test_a_run_that_broke_off_leaves_nothing_and_the_next_one_is_as_ever(kind: str) -> None:
    watched, model = RECORDING[kind](), Breaks(net())
    with pytest.raises(RuntimeError, match="boom"):
        trainer(watched).fit(model, loader(80))
    assert hooks_of(model) == []
    assert run_with(watched) == run_with(RECORDING[kind]())


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


@pytest.mark.parametrize("broken", ["begin_batch", "end_batch"])
@pytest.mark.parametrize("kind", RECORDING)
def test_an_error_in_a_recorder_ends_the_diagnostic_and_not_the_run(
    kind: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(f"bnlab_callbacks.recorders.gradients.GradientRecorder.{broken}", fails)
    monkeypatch.setattr(f"bnlab_callbacks.recorders.forward_recorder.ForwardRecorder.{broken}", fails)
    model = Module(net())
    run = trainer(RECORDING[kind](), max_epochs=2)
    with pytest.warns(UserWarning, match="is off for the rest of this run: RuntimeError: boom"):
        run.fit(model, loader(80))
    assert run.global_step == 20
    assert hooks_of(model) == []


class RaisesOnException(pl.Callback):
    """Lightning calls no hook of the callbacks behind it then."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        raise RuntimeError("within on_exception")


def test_a_run_whose_end_no_callback_heard_of_leaves_the_next_one_its_records() -> None:
    watched = [make() for make in RECORDING.values()]
    model, run = Breaks(net()), trainer(RaisesOnException(), *watched, max_epochs=2)
    with pytest.raises(RuntimeError, match="within on_exception"):
        run.fit(model, loader(80))
    memory(run).rows.clear()
    run.fit(Module(net()), loader(80))
    assert {"grad_rms/00_net.0", "act_mean/00_net.1", "bn_drift/00_net.2"} <= memory(run).tags()
    assert hooks_of(model) == []
