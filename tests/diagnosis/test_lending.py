"""Monitors lend the diagnosis what they record: nothing is recorded twice, nothing is another number for it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from bnlab_callbacks import ActivationMonitor, BatchNormMonitor, GradientMonitor, TrainingDiagnosis
from bnlab_callbacks.core.lightning.monitor import Monitor
from bnlab_callbacks.core.lightning.records import Record, RecordListener
from bnlab_callbacks.diagnosis.observations import Observation
from tests.callbacks.small_runs import as_on_an_accelerator
from tests.diagnosis.small_runs import Net, batches, fit, net
from tests.diagnosis.test_any_run import KINDS, run
from tests.diagnosis.test_training_diagnosis import Adversarial
from tests.helpers.silent_trainer import trainer_in

pytestmark = pytest.mark.usefixtures("one_thread")

LOOKS = [*range(20), *range(20, 100, 5), *range(100, 250, 50)]


class Listener(RecordListener):
    """Keeps all records."""

    def __init__(self) -> None:
        self.records: list[tuple[int, dict[str, float]]] = []

    def on_record(self, trainer: Any, record: Record) -> None:
        self.records.append((record.step, {k: v for k, v in record.values.items() if "overhead" not in k}))


class Notes(TrainingDiagnosis):
    """Keeps all observations, and which steps its own monitors recorded."""

    def _restart(self) -> None:
        super()._restart()
        self.seen: list[Observation] = []
        self.own: dict[str, list[int]] = {}
        for monitor in self._recorder._monitors:
            self._note(monitor)

    def _note(self, monitor: Any) -> None:
        keep, steps = monitor.keep, self.own.setdefault(monitor.kind.__name__, [])

        def noted(trainer: Any, taken: Any) -> None:
            keep(trainer, taken)
            steps.append(monitor.waiting[-1].record.step)

        monitor.keep = noted

    def _observe(self, trainer: Any, observation: Observation) -> None:
        self.seen.append(observation)
        super()._observe(trainer, observation)


def module(kind: type[Net] = Net) -> Net:
    torch.manual_seed(4)
    return kind(net(nn.BatchNorm1d(20), nn.Linear(20, 20), nn.Sigmoid()))


def monitors(every: int | None) -> list[Monitor]:
    return [GradientMonitor(every), ActivationMonitor(every, dead_window=3), BatchNormMonitor(every)]


def diagnose(folder: Path, *callbacks: Any, steps: int = 250) -> Notes:
    diagnosis = Notes(summary=False)
    fit(folder, module(), callbacks=list(callbacks), diagnosis=diagnosis, max_epochs=-1, max_steps=steps)
    return diagnosis


def test_what_is_lent_is_the_same_as_what_it_records_itself(tmp_path: Path) -> None:
    alone = diagnose(tmp_path)
    assert [seen.step for seen in alone.seen] == LOOKS
    assert alone.own == dict.fromkeys(("GradientMonitor", "ActivationMonitor", "BatchNormMonitor"), LOOKS)
    assert {"weight_rms", "update_ratio", "dead_frac", "bn_drift"} <= set(alone.seen[-1].values)
    for every in (1, 3, 50):
        lent = diagnose(tmp_path, *monitors(every))
        assert lent.seen == alone.seen
        assert lent._observations == alone._observations
        for steps in lent.own.values():  # each epoch's first step, of sixteen, is recorded in any case
            assert steps == [step for step in LOOKS if step % 16 and not records(step, every)]


def records(step: int, every: int) -> bool:
    """Whether a monitor records a step behind the first of an epoch: the first one of its slot."""
    return step // every != (step - 1) // every


@pytest.mark.parametrize("every", [1, 3, 50])
def test_what_monitors_log_is_the_same_whoever_borrows(tmp_path: Path, every: int) -> None:
    def logged(*diagnosis: TrainingDiagnosis) -> list[tuple[int, dict[str, float]]]:
        listener = Listener()
        callbacks = [*monitors(every), *diagnosis, listener]
        trainer_in(tmp_path, callbacks=callbacks, max_epochs=-1, max_steps=120).fit(module(), batches())
        return sorted(listener.records, key=lambda record: (record[0], *record[1]))

    assert logged(TrainingDiagnosis(summary=False)) == logged() != []


@pytest.mark.parametrize(
    "lender",
    [
        GradientMonitor(1, layers="fc1"),
        GradientMonitor(1, update_ratio=False),
        GradientMonitor(1, enabled=False),
        ActivationMonitor(1, layers="act1"),
        BatchNormMonitor(1, smoothness_every_n_steps=40),
        type("Other", (GradientMonitor,), {})(1),
    ],
    ids=lambda lender: f"{type(lender).__name__}-{lender.layers}-{lender.enabled}",
)
def test_what_lacks_something_is_not_borrowed(tmp_path: Path, lender: Monitor) -> None:
    lent = diagnose(tmp_path, lender, steps=30)
    assert lent.seen == diagnose(tmp_path, steps=30).seen
    assert all(steps == LOOKS[:22] for steps in lent.own.values())


def test_a_monitor_behind_the_diagnosis_lends_nothing(tmp_path: Path) -> None:
    diagnosis = Notes(summary=False)
    trainer_in(tmp_path, callbacks=[diagnosis, *monitors(1)], max_epochs=1).fit(module(), batches())
    assert all(steps == LOOKS[:16] for steps in diagnosis.own.values())
    assert diagnosis.seen == diagnose(tmp_path, steps=16).seen


def test_a_lender_that_fails_is_replaced(tmp_path: Path) -> None:
    lender = GradientMonitor(1)

    class Breaks(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.trainer.global_step == 9:  # after the callbacks have been called
                lender._owned = None  # type: ignore[assignment]

    diagnosis = Notes(summary=False)
    with pytest.warns(UserWarning, match="GradientMonitor is off"):
        fit(tmp_path, module(Breaks), callbacks=[lender], diagnosis=diagnosis, max_epochs=1)
    alone = diagnose(tmp_path, steps=16)
    without = [seen.step for seen in diagnosis.seen if "grad_rms" not in seen.values]
    assert (without, diagnosis.own["GradientMonitor"]) == ([10], list(range(11, 16)))
    assert [*diagnosis.seen[:10], *diagnosis.seen[11:]] == [*alone.seen[:10], *alone.seen[11:]]


@pytest.mark.filterwarnings("ignore:ActivationMonitor is off")  # of a net without activation modules
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("every", [1, 3])
def test_lending_changes_nothing_in_a_run_of_any_kind(name: str, every: int, tmp_path: Path) -> None:
    alone, lent = Notes(), Notes()
    weights = run(name, tmp_path, alone)
    same = run(name, tmp_path, GradientMonitor(every), ActivationMonitor(every), lent)
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    assert lent.seen == alone.seen
    assert len(lent.own["GradientMonitor"]) < len(alone.own["GradientMonitor"])


def test_with_two_optimizers_gradients_are_not_lent(tmp_path: Path) -> None:
    alone, lent = Notes(), Notes()
    fit(tmp_path, Adversarial(), diagnosis=alone)
    fit(tmp_path, Adversarial(), callbacks=[GradientMonitor(3), ActivationMonitor(3)], diagnosis=lent)
    assert lent.seen == alone.seen
    assert lent.own["GradientMonitor"] == alone.own["GradientMonitor"]


@pytest.mark.parametrize("seconds", [0.0, math.inf])
def test_each_look_is_one_copy_off_the_device(seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what monitors recorded as well, which then need none of their own."""
    copies = as_on_an_accelerator(monkeypatch)
    for module_ in ("bnlab_callbacks.core.lightning.monitor", "bnlab_callbacks.diagnosis.watching.step_recorder"):
        monkeypatch.setattr(f"{module_}.SECONDS", seconds)
    loader = DataLoader(Subset(ConcatDataset([batches().dataset] * 16), range(16 * 250)), batch_size=16)

    def count(*callbacks: Any) -> int:
        copies.clear()
        trainer_in(tmp_path, callbacks=list(callbacks), max_epochs=1).fit(module(), loader)
        return len(copies)

    later = TrainingDiagnosis(first_steps=1, summary=False)
    if seconds == 0:  # each record by itself, as in slow steps
        assert count(TrainingDiagnosis(summary=False)) == len(LOOKS) + 1  # and the losses since the last of them
        assert count(*monitors(50)) == 3 * 5
        assert count(*monitors(50), later) == 5 + 1  # each of them takes the place of three
    else:  # 32 records together
        assert count(TrainingDiagnosis(summary=False)) == 2
        assert count(*monitors(50)) == 3
        assert count(*monitors(50), later) == 1
