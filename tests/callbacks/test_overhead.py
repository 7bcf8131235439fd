"""What monitors cost by their own account, and that they keep to a budget."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab_callbacks import ActivationMonitor, GradientMonitor
from bnlab_callbacks.core.overhead import Overhead
from bnlab_callbacks.core.records import Record
from tests.callbacks.small_runs import Module, loader, memory, mlp, trainer


def overhead(spent: float, total: float, steps: int, records: int) -> Overhead:
    made = Overhead()
    made.spent, made.total, made._steps, made.records = spent, total, steps, records
    return made


def test_fraction_and_pause_by_hand() -> None:
    assert Overhead().fraction == 0
    assert Overhead().pause(0.01) == 1
    assert overhead(1.0, 5.0, 4, 1).fraction == 0.2
    # steps of 1 s without the diagnostic; two records of 1 s are 1 % of 200 s, of which 5 have passed
    assert overhead(1.0, 5.0, 4, 1).pause(0.01) == 195
    assert overhead(1.0, 1001.0, 1000, 1).pause(0.01) == 1


def test_time_between_steps_counts_on_both_sides() -> None:
    made = Overhead()
    made.add(1.0)
    assert (made.spent, made.total) == (1.0, 1.0)
    made.begin_step()
    made.add(2.0)
    assert (made.spent, made.total) == (3.0, 1.0)
    made.end_step()
    assert 1 < made.total < 2


class SlowRead(GradientMonitor):
    """A monitor whose every record costs 20 ms, in steps that take 5 ms without it."""

    def read_records(self, taken: Any, into: list[Record]) -> None:
        time.sleep(0.02 * len(taken))
        super().read_records(taken, into)


class SlowStep(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        time.sleep(0.005)
        return super().training_step(batch, batch_idx)


def test_a_budget_stretches_the_interval() -> None:
    monitor = SlowRead(1, budget=0.25)
    run = trainer(monitor)
    run.fit(SlowStep(mlp()), loader(480, batch_size=4))
    steps = memory(run).steps("grad_rms/00_net.0")
    assert steps[0] == 0
    assert 5 <= len(steps) <= 30  # of 120; without a budget all of them
    assert 0.1 < monitor.overhead.fraction < 0.32


def test_each_epoch_has_its_record_whatever_the_budget() -> None:
    run = trainer(GradientMonitor(1, budget=1e-9), ActivationMonitor(1, budget=1e-9), max_epochs=3)
    run.fit(Module(mlp()), loader(32, batch_size=8))
    assert memory(run).steps("grad_rms/00_net.0") == [0, 4, 8]
    assert memory(run).steps("act_mean/00_net.1") == [0, 4, 8]


def test_the_cost_is_logged_once_an_epoch_for_all_monitors_together() -> None:
    gradients, activations = GradientMonitor(), ActivationMonitor()
    run = trainer(gradients, activations, max_epochs=2)
    run.fit(Module(mlp()), loader())
    series = memory(run).series("diagnostics/overhead_frac")
    assert [step for step, _ in series] == [2, 5]
    assert all(0 < value < 1.5 for _, value in series)


@pytest.mark.parametrize("budget", [0, -1, float("nan")])
def test_a_budget_must_be_positive(budget: float) -> None:
    with pytest.raises(ValueError, match="is not above 0"):
        GradientMonitor(budget=budget)


class Stops(Module):
    """Raises in the middle of an epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 5:
            raise RuntimeError("boom")
        return super().training_step(batch, batch_idx)


def test_what_led_up_to_an_exception_is_published() -> None:
    run = trainer(GradientMonitor(1), ActivationMonitor(1))
    with pytest.raises(RuntimeError, match="boom"):
        run.fit(Stops(mlp()), loader(64))
    assert memory(run).steps("grad_rms/00_net.0") == [0, 1, 2, 3, 4]
    assert memory(run).steps("act_mean/00_net.1") == [0, 1, 2, 3, 4]


class Blinking(nn.Module):
    """Unit 0 fires in every step, unit 1 in steps that are not recorded only, unit 2 never."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.calls = nn.Linear(6, 3), nn.ReLU(), 0

    def forward(self, x: Tensor) -> Tensor:
        signs = torch.tensor([1.0, 1.0 if self.calls % 3 else -1.0, -1.0])
        self.calls += self.training
        out: Tensor = self.act(self.fc(x).abs() * signs + signs)
        return out


@pytest.mark.parametrize(("exact", "dead", "samples"), [(False, 2 / 3, 16), (True, 1 / 3, 40)])
def test_exact_dead_units_see_every_step(exact: bool, dead: float, samples: int) -> None:
    run = trainer(ActivationMonitor(3, exact_dead=exact))
    run.fit(Module(Blinking()), loader(40), loader(8))
    assert memory(run).series("dead_frac_epoch/00_net.act")[0][1] == pytest.approx(dead)
    assert memory(run).series("dead_samples_epoch/00_net.act")[0][1] == samples


class SlowToAgree(GradientMonitor):
    """As where ranks wait for each other to agree on the next record."""

    def _keep_to_budget(self) -> None:
        time.sleep(0.01)
        super()._keep_to_budget()


def test_the_time_that_ranks_take_to_agree_counts() -> None:
    monitor = SlowToAgree(1, budget=1e9)
    trainer(monitor).fit(Module(mlp()), loader(8 * 5))
    assert monitor.overhead.spent >= 5 * 0.01
