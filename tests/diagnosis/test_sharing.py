"""Monitors and the diagnosis share their recorders: nothing is recorded twice, nothing is another number for it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from bnlab_callbacks import ActivationMonitor, BatchNormMonitor, GradientMonitor, TrainingDiagnosis
from bnlab_callbacks.core.lightning.monitor import Monitor
from bnlab_callbacks.core.lightning.run_output import RunOutput
from bnlab_callbacks.core.records import Record
from bnlab_callbacks.diagnosis.observations import Observation
from bnlab_callbacks.recorders.activations import ActivationRecorder
from bnlab_callbacks.recorders.batch_norm import BatchNormRecorder
from bnlab_callbacks.recorders.gradients import GradientRecorder
from tests.callbacks.small_runs import as_on_an_accelerator
from tests.diagnosis.small_runs import Net, batches, fit, net
from tests.diagnosis.test_any_run import KINDS, run
from tests.diagnosis.test_training_diagnosis import Adversarial
from tests.helpers.silent_trainer import trainer_in

pytestmark = pytest.mark.usefixtures("one_thread")

LOOKS = [*range(20), *range(20, 100, 5), *range(100, 250, 50)]


class Listener(RunOutput):
    """Keeps all records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[int, dict[str, float]]] = []

    def take(self, trainer: Any, record: Record) -> None:
        self.records.append((record.step, {k: v for k, v in record.values.items() if "overhead" not in k}))


class Notes(TrainingDiagnosis):
    """Keeps all observations."""

    def _restart(self) -> None:
        super()._restart()
        self.seen: list[Observation] = []
        observe = self._judge.observe

        def noted(observation: Observation) -> None:
            self.seen.append(observation)
            observe(observation)

        self._judge.observe = noted  # type: ignore[method-assign]


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """The number of recorders of each kind that are made, and of the times that gradients' sums are taken."""
    counts = {"GradientRecorder": 0, "ActivationRecorder": 0, "BatchNormRecorder": 0, "gradients": 0}
    with pytest.MonkeyPatch.context() as patch:
        for kind in (GradientRecorder, ActivationRecorder, BatchNormRecorder):
            make = kind.__init__

            def counting(self: Any, *given: Any, make: Any = make, name: str = kind.__name__) -> None:
                counts[name] += 1
                make(self, *given)

            patch.setattr(kind, "__init__", counting)
        take = GradientRecorder._take

        def taking(self: Any, weights: Any, *given: Any) -> Any:
            counts["gradients"] += 1
            return take(self, weights, *given)

        patch.setattr(GradientRecorder, "_take", taking)
        yield counts


def module(kind: type[Net] = Net) -> Net:
    torch.manual_seed(4)
    return kind(net(nn.BatchNorm1d(20), nn.Linear(20, 20), nn.Sigmoid()))


def monitors(every: int | None) -> list[Monitor]:
    return [GradientMonitor(every), ActivationMonitor(every, dead_window=3), BatchNormMonitor(every)]


def diagnose(folder: Path, *callbacks: Any, steps: int = 250) -> Notes:
    diagnosis = Notes(summary=False)
    fit(folder, module(), callbacks=list(callbacks), diagnosis=diagnosis, max_epochs=-1, max_steps=steps)
    return diagnosis


def test_what_is_shared_is_the_same_as_what_it_records_alone(tmp_path: Path) -> None:
    with counted() as counts:
        alone = diagnose(tmp_path)
    assert [seen.step for seen in alone.seen] == LOOKS
    assert {"weight_rms", "update_ratio", "dead_frac", "bn_drift"} <= set(alone.seen[-1].values)
    assert counts["gradients"] == len(LOOKS)
    for every in (1, 3, 50):
        with counted() as counts:
            shared = diagnose(tmp_path, *monitors(every))
        assert shared.seen == alone.seen
        assert shared._judge.observations == alone._judge.observations
        recorded = {*LOOKS, *range(0, 250, every), *range(0, 250, 16)}  # and each epoch's first step
        slots = {step for step in recorded if step in LOOKS or step % 16 == 0 or step // every != (step - 1) // every}
        one_of_each = dict.fromkeys(("GradientRecorder", "ActivationRecorder", "BatchNormRecorder"), 1)
        assert counts == one_of_each | {"gradients": len(slots)}


@pytest.mark.parametrize("first", [False, True], ids=["behind the monitors", "before them"])
@pytest.mark.parametrize("every", [1, 3, 50])
def test_what_monitors_log_is_the_same_whoever_shares(tmp_path: Path, every: int, first: bool) -> None:
    def logged(*diagnosis: TrainingDiagnosis) -> list[tuple[int, dict[str, float]]]:
        listener = Listener()
        callbacks = [*diagnosis, *monitors(every)] if first else [*monitors(every), *diagnosis]
        options: dict[str, Any] = {"callbacks": [*callbacks, listener], "max_epochs": -1, "max_steps": 120}
        trainer_in(tmp_path, **options).fit(module(), batches())
        return listener.records

    assert logged(TrainingDiagnosis(summary=False)) == logged() != []


@pytest.mark.parametrize(
    "partial",
    [
        GradientMonitor(1, layers="fc1"),
        GradientMonitor(1, update_ratio=False),
        GradientMonitor(1, enabled=False),
        ActivationMonitor(1, layers="act1"),
        ActivationMonitor(7, exact_dead=True),
        BatchNormMonitor(1, smoothness_every_n_steps=40),
        type("Other", (GradientMonitor,), {})(1),
    ],
    ids=lambda monitor: f"{type(monitor).__name__}-{monitor.layers}-{monitor.enabled}",
)
def test_a_monitor_of_a_part_shares_too_and_both_see_what_they_would_alone(tmp_path: Path, partial: Monitor) -> None:
    def logged(*diagnosis: TrainingDiagnosis) -> list[tuple[int, dict[str, float]]]:
        listener = Listener()
        options: dict[str, Any] = {"callbacks": [partial, *diagnosis, listener], "max_epochs": -1, "max_steps": 30}
        trainer_in(tmp_path, **options).fit(module(), batches())
        return listener.records

    shared = Notes(summary=False)
    assert logged(shared) == logged()
    alone = diagnose(tmp_path, steps=30)
    assert len(shared.seen) == len(alone.seen)
    for one, other in zip(shared.seen, alone.seen, strict=True):
        for quantity, layers in other.values.items():  # exact dead units are counted at once, which rounds otherwise
            assert one.values[quantity] == pytest.approx(dict(layers), rel=1e-12, abs=0, nan_ok=True)


def test_a_sharer_that_fails_leaves_the_other_alone(tmp_path: Path) -> None:
    """Its own part of the work is broken; the recorder, which it led, is not."""
    broken = GradientMonitor(1)

    class Breaks(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.trainer.global_step == 9:  # after the callbacks have been called
                broken.overhead = None  # type: ignore[assignment]

    diagnosis = Notes(summary=False)
    with pytest.warns(UserWarning, match="GradientMonitor is off"):
        fit(tmp_path, module(Breaks), callbacks=[broken], diagnosis=diagnosis, max_epochs=1)
    assert diagnosis.seen == diagnose(tmp_path, steps=16).seen


@pytest.mark.filterwarnings("ignore:ActivationMonitor is off")  # of a net without activation modules
@pytest.mark.parametrize("name", KINDS)
def test_sharing_changes_nothing_in_a_run_of_any_kind(name: str, tmp_path: Path) -> None:
    alone = Notes()
    weights = run(name, tmp_path, alone)
    for every in (1, 3):
        shared = Notes()
        same = run(name, tmp_path, GradientMonitor(every), ActivationMonitor(every), shared)
        assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
        assert shared.seen == alone.seen


def test_with_two_optimizers_the_diagnosis_sees_what_it_would_alone(tmp_path: Path) -> None:
    alone, shared = Notes(), Notes()
    fit(tmp_path, Adversarial(), diagnosis=alone)
    fit(tmp_path, Adversarial(), callbacks=[GradientMonitor(3), ActivationMonitor(3)], diagnosis=shared)
    assert shared.seen == alone.seen


@pytest.mark.parametrize("seconds", [0.0, math.inf])
def test_each_look_is_one_copy_off_the_device(seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what monitors recorded as well, which then need none of their own."""
    copies = as_on_an_accelerator(monkeypatch)
    monkeypatch.setattr("bnlab_callbacks.core.lightning.publisher.SECONDS", seconds)
    monkeypatch.setattr("bnlab_callbacks.diagnosis.watching.run_watch._SECONDS", seconds)
    loader = DataLoader(Subset(ConcatDataset([batches().dataset] * 16), range(16 * 250)), batch_size=16)

    def count(*callbacks: Any) -> int:
        copies.clear()
        trainer_in(tmp_path, callbacks=list(callbacks), max_epochs=1).fit(module(), loader)
        return len(copies)

    later = TrainingDiagnosis(first_steps=1, summary=False)
    if seconds == 0:  # each record by itself, as in slow steps
        assert count(TrainingDiagnosis(summary=False)) == len(LOOKS) + 1  # and the losses since the last of them
        assert count(*monitors(50)) == 5  # all three together
        assert count(*monitors(50), later) == 5 + 1
    else:  # 32 records together
        assert count(TrainingDiagnosis(summary=False)) == 2
        assert count(*monitors(50)) == 1
        assert count(*monitors(50), later) == 1


def test_a_leader_with_nothing_to_see_leaves_the_others_their_update_ratios(tmp_path: Path) -> None:
    """It gives up where the recorder is told of a step, which the next reader must not tell it again."""
    diagnosis = Notes(summary=False)
    with pytest.warns(UserWarning, match=r"GradientMonitor is off.*no layer's name matches layers='nothing'"):
        fit(tmp_path, module(), callbacks=[GradientMonitor(1, layers="nothing")], diagnosis=diagnosis, max_epochs=1)
    assert diagnosis.seen == diagnose(tmp_path, steps=16).seen


def test_only_layers_that_a_due_reader_wants_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor of one layer that records every step does not make the diagnosis cost what every step would."""
    taken: list[int] = []
    take = GradientRecorder._take

    def taking(self: Any, weights: Any, *given: Any) -> Any:
        taken.append(len(weights))
        return take(self, weights, *given)

    monkeypatch.setattr(GradientRecorder, "_take", taking)
    callbacks = [GradientMonitor(1, layers="fc1"), TrainingDiagnosis(1, 8, summary=False)]
    trainer_in(tmp_path, callbacks=callbacks, max_epochs=1).fit(module(), batches())
    assert taken == [3, *[1] * 7, 3, *[1] * 7]


class StepsInSomeBatches(Net):
    """Manual optimization: one batch of three makes no optimizer step, one makes two."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        optimizer: Any = self.optimizers()
        for _ in range(batch_idx % 3):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("first", [False, True], ids=["behind the monitors", "before them"])
def test_a_reader_that_is_due_in_the_middle_of_anothers_step_gets_its_own_part(tmp_path: Path, first: bool) -> None:
    def logged(*diagnosis: TrainingDiagnosis) -> list[tuple[int, dict[str, float]]]:
        listener = Listener()
        callbacks = [*diagnosis, *monitors(2)] if first else [*monitors(2), *diagnosis]
        trainer_in(tmp_path, callbacks=[*callbacks, listener], max_epochs=2).fit(module(StepsInSomeBatches), batches())
        return listener.records

    assert logged(TrainingDiagnosis(summary=False)) == logged() != []
