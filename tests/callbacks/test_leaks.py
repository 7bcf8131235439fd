"""What is left of a run: nothing, in whatever way it ends, and no more after ten thousand records than after some."""

import gc
import sys
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor, TrainingDiagnosis
from bnlab_callbacks.core.lightning.monitor import Monitor
from tests.callbacks.small_runs import Module, hooks_of, loader, mlp, trainer

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS: dict[str, Callable[[], Monitor]] = {
    "gradients": lambda: GradientMonitor(1),
    "activations": lambda: ActivationMonitor(1, exact_dead=True),
}


class Ends(Module):
    """Ends in its second step as it is told."""

    def __init__(self, error: type[BaseException] | None) -> None:
        super().__init__(mlp(), lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
        self.error = error

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.error is not None and batch_idx == 1:
            raise self.error("the end")
        return super().training_step(batch, batch_idx)


def fit(model: pl.LightningModule, *callbacks: Any, **options: Any) -> None:
    """To the end, or to the model's own."""
    error = getattr(model, "error", None)
    run = trainer(*callbacks, logger=False, **options)
    if error is None:
        run.fit(model, loader())
    else:
        with pytest.raises((error, SystemExit)):  # Lightning turns an interrupt into an exit
            run.fit(model, loader())


def held(root: object) -> list[object]:
    """Tensors, modules and Trainers that can be reached from an object through containers and its own attributes."""
    found: list[object] = []
    seen: set[int] = set()
    queue = [root]
    while queue:
        one = queue.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor | nn.Module | pl.Trainer):
            found.append(one)
        elif isinstance(one, dict):
            queue += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset) or type(one).__name__ == "deque":
            queue += list(one)  # type: ignore[call-overload]
        elif isinstance(one, MethodType) and one.__name__ not in ("log", "log_dict"):  # Lightning gives these to all
            queue.append(one.__self__)
        elif type(one).__module__.startswith("bnlab_callbacks"):
            queue += list(getattr(one, "__dict__", {}).values())
    return found


def without_state(monitor: Monitor) -> Monitor:
    """A monitor without the state that a checkpoint after its end would get: small tensors on the host."""
    assert all(isinstance(one, Tensor) and one.is_cpu and one.numel() < 500 for one in held(monitor._state))
    monitor._state = None
    return monitor


def tensors_alive() -> tuple[int, int]:
    """How many tensors there are, and their bytes."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
    return len(tensors), sum(one.numel() * one.element_size() for one in tensors)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", KINDS)
def test_however_a_run_ends_no_hook_buffer_or_reference_is_left(kind: str, error: type[BaseException] | None) -> None:
    monitor, model = KINDS[kind](), Ends(error)
    fit(model, monitor)
    assert monitor.latest
    assert hooks_of(model) == []
    assert held(without_state(monitor)) == []


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_a_diagnosis_leaves_nothing_either(error: type[BaseException] | None) -> None:
    diagnosis, model = TrainingDiagnosis(summary=False), Ends(error)
    fit(model, diagnosis)
    assert hooks_of(model) == []
    assert [one for one in held(diagnosis) if not isinstance(one, Tensor)] == []  # it keeps those of its tables


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", KINDS)
def test_a_monitor_keeps_no_model_alive(kind: str, error: type[BaseException] | None) -> None:
    """But for the methods `log` and `log_dict` of the last model, which Lightning gives to every callback."""
    monitor = KINDS[kind]()
    dead = []
    for _ in range(2):
        model = Ends(error)
        fit(model, monitor)
        dead += [weakref.ref(model), weakref.ref(model.net), weakref.ref(next(model.parameters()))]
        del model
    gc.collect()
    assert [ref() for ref in dead[:3]] == [None] * 3
    for lightnings in ("log", "log_dict"):
        vars(monitor).pop(lightnings, None)
    gc.collect()
    assert [ref() for ref in dead[3:]] == [None] * 3


@pytest.mark.parametrize("first", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_fit_leaves_nothing_either(kind: str, first: type[BaseException] | None) -> None:
    monitor, model = KINDS[kind](), Ends(first)
    fit(model, monitor)
    fit(Ends(None), monitor)  # another model: nothing of it may hang on the first
    model.error = None
    fit(model, monitor)
    assert hooks_of(model) == []
    assert held(without_state(monitor)) == []


class Failing(Module):
    """Its training goes on while a diagnostic gives up."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Monitor):
                    callback.give_up("as told")


@pytest.mark.parametrize("kind", KINDS)
def test_a_monitor_that_gives_up_leaves_nothing_within_the_run(kind: str) -> None:
    seen: list[int] = []

    class Looks(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.extend((len(held(without_state(monitor))), len(hooks_of(pl_module))))

    monitor = KINDS[kind]()
    with pytest.warns(UserWarning, match="is off for the rest of this run: as told"):
        fit(Failing(mlp()), monitor, Looks())
    assert seen == [0, 0]


def test_the_search_for_what_is_held_finds_what_a_run_needs() -> None:
    """Within a run the monitors do hold buffers and hooks: the assertions above can fail."""
    seen: list[tuple[int, int]] = []

    class Looks(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            seen.append((len(held(gradients)), len(hooks_of(model))))

    gradients, model = GradientMonitor(1), Ends(None)
    fit(model, gradients, ActivationMonitor(1), Looks())
    assert seen[-1][0] > 3  # weights, their copies, scratch
    modules = sum(1 for _ in model.modules())
    assert seen[-1][1] == 2 + 2 * modules  # the activations', and those that see which module runs


STEPS, EPOCH = 10_000, 2_500
LOOKS = (480, 2_400)  # steps of an epoch: as far from its start as whole groups of records published together
SETTLED = EPOCH  # steps until all has been used once
PER_RECORD = 0.06  # blocks of memory; one object that every group of 16 records left would be more


class Tiny(pl.LightningModule):
    """Two units, without Lightning's own logging."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), nn.Sigmoid())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out: Tensor = self.net(batch)
        return F.mse_loss(out, batch[:, :1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Memory(pl.Callback):
    """Python's blocks of memory, and tensors, at some steps."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.tensors: list[tuple[int, int]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if step > SETTLED and step % EPOCH in LOOKS:
            self.tensors.append(tensors_alive())
            self.blocks.append(sys.getallocatedblocks())


@pytest.mark.slow
def test_memory_does_not_grow_over_ten_thousand_records() -> None:
    """Neither within epochs nor over them."""
    batches = DataLoader([torch.rand(4, 2) for _ in range(EPOCH)], batch_size=None)  # type: ignore[arg-type]
    gradients, activations, memory = GradientMonitor(1), ActivationMonitor(1), Memory()
    run = trainer(gradients, activations, EpochTimer(), memory, max_epochs=STEPS // EPOCH, logger=False)
    run.fit(Tiny(), batches)
    assert run.global_step == STEPS
    assert gradients.overhead.records == activations.overhead.records == STEPS
    assert len(memory.blocks) == 6
    assert memory.tensors == sorted(memory.tensors, reverse=True)  # what an earlier test left may still go
    # not from the first look on: Python's own caches still fill then, without the callbacks too
    assert max(memory.blocks) - memory.blocks[1] < PER_RECORD * (STEPS - SETTLED - LOOKS[1])
