"""What is seen of optimizers: coverage, rates, schedules, and gradients that were not cleared."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler

from bnlab_callbacks.diagnosis.observations import Coverage, Schedule
from bnlab_callbacks.diagnosis.watching.batch_tensors import samples_of_vectors
from bnlab_callbacks.diagnosis.watching.cleared_gradients import ClearedGradients
from bnlab_callbacks.diagnosis.watching.optimizer_facts import (
    OptimizerWatch,
    base_rate,
    coverage,
    learning_rate,
    lost_epsilon,
    schedule_of,
)
from tests.diagnosis.small_runs import Net, batches, fit, net


def parts() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_coverage_counts_single_weights() -> None:
    model, other = parts(), nn.Linear(5, 1)
    model[0].requires_grad_(False)
    held = [SGD([*model[0].parameters(), *model[1].parameters(), *other.parameters()], 0.1)]
    assert coverage(model, held) == Coverage(trainable=8 + 10, held=8, frozen=16, foreign=6)


def test_a_model_that_no_optimizer_holds_is_looked_at_until_one_does() -> None:
    model, head = parts(), nn.Linear(2, 2)
    optimizer = SGD(head.parameters(), 0.1)
    watch = OptimizerWatch(model, [optimizer])
    watch.before_step(optimizer, recorded=True)
    assert watch.facts()["coverage"] == Coverage(34, 0, 0, 6, moved=False, reached=False)
    model(torch.randn(5, 3)).sum().backward()
    watch.before_step(optimizer, recorded=True)
    assert watch.facts()["coverage"] == Coverage(34, 0, 0, 6, moved=False, reached=True)
    with torch.no_grad():
        model[2].bias.add_(1)
    watch.before_step(optimizer, recorded=True)
    assert watch.facts()["coverage"].moved
    optimizer.add_param_group({"params": model.parameters()})
    watch.before_step(optimizer, recorded=True)
    assert watch.facts()["coverage"].held == 34
    assert OptimizerWatch(model, []).facts()["coverage"] is None
    assert OptimizerWatch().facts() == {"optimizers": (), "coverage": None, "resting": ()}


def test_the_rate_is_the_largest_of_the_groups_that_train() -> None:
    model = parts()
    model[0].requires_grad_(False)
    groups: list[dict[str, Any]] = [{"params": list(layer.parameters())} for layer in model]
    groups[0]["lr"], groups[1]["lr"], groups[2]["lr"] = 1.0, torch.tensor(0.25), 0.125
    optimizer = SGD(groups, foreach=False)
    assert learning_rate(optimizer) == 0.25
    optimizer.param_groups[1]["lr"] = None  # some optimizers choose it themselves
    assert learning_rate(optimizer) is None
    model.requires_grad_(False)
    assert learning_rate(optimizer) is None


def test_a_group_with_a_rate_of_zero_beside_others_rests() -> None:
    model = parts()
    groups: list[dict[str, Any]] = [
        {"params": list(model[0].parameters()), "lr": 0.0},
        {"params": model[2].parameters()},
    ]
    optimizer = SGD(groups, 0.1)
    watch = OptimizerWatch(model, [optimizer])
    watch.begin_step(0)
    assert watch.facts()["resting"] == ("0",)
    optimizer.param_groups[1]["lr"] = 0.0  # a schedule's, then
    watch.begin_step(1)
    assert watch.facts()["resting"] == ()


def test_rates_of_a_run_that_fall_to_nothing() -> None:
    model = nn.Linear(2, 2)
    optimizer = SGD(model.parameters(), 0.5)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: [1.0, 2.0, 1e-5, 0.0][step])
    watch = OptimizerWatch(model, [optimizer], [(scheduler, False, 1)])
    seen = []
    for step in range(4):
        watch.begin_step(step)
        (state,) = watch.facts()["optimizers"]
        seen.append((state.rate, state.highest, state.nothing_since))
        optimizer.step()
        if step < 3:
            scheduler.step()
    assert seen == [(0.5, 0.5, None), (1.0, 1.0, None), (5e-6, 1.0, 2), (0.0, 1.0, 2)]
    assert (state.name, state.base, state.began, state.own, state.schedule) == (
        "SGD",
        0.5,
        0.5,
        True,
        Schedule("LambdaLR", False, peak_rate=0.5),
    )
    assert not state.settled  # it rose to twice its beginning


def _warm(step: int, num_warmup_steps: int, num_training_steps: int) -> float:
    return min(1.0, step / num_warmup_steps)


@pytest.mark.parametrize(
    ("make", "length", "peak", "rate", "returns"),
    [
        (partial(lr_scheduler.OneCycleLR, max_lr=0.5, total_steps=100), 100, 29, 0.5, False),
        (partial(lr_scheduler.CosineAnnealingLR, T_max=7), 7, None, 0.1, True),
        (partial(lr_scheduler.PolynomialLR, total_iters=9), 9, None, 0.1, False),
        (partial(lr_scheduler.LinearLR, start_factor=0.5, total_iters=6), None, 6, 0.1, False),
        (partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.5), None, None, 0.1, False),
        (partial(lr_scheduler.StepLR, step_size=3), None, None, 0.1, False),
        (
            partial(lr_scheduler.LambdaLR, lr_lambda=partial(_warm, num_warmup_steps=4, num_training_steps=50)),
            50,
            4,
            0.1,
            False,
        ),
    ],
)
def test_what_schedulers_say_of_themselves(
    make: Any, length: int | None, peak: int | None, rate: float, returns: bool
) -> None:
    optimizer = SGD(nn.Linear(2, 2).parameters(), 0.1)
    scheduler = make(optimizer)
    name = type(scheduler).__name__
    assert schedule_of(scheduler, True, 2) == Schedule(name, True, 2, length, peak, rate, returns)
    assert base_rate(optimizer) == rate


def test_schedules_in_a_row() -> None:
    optimizer = SGD(nn.Linear(2, 2).parameters(), 0.1)
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5),
        lr_scheduler.CosineAnnealingLR(optimizer, T_max=20),
    ]
    joined = lr_scheduler.SequentialLR(optimizer, parts, milestones=[5])
    assert schedule_of(joined, False, 1) == Schedule("SequentialLR", False, 1, 25, 5, 0.1, True)


def test_schedulers_of_others_are_not_asked() -> None:
    class Mine:
        T_max = "many"

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    assert schedule_of(Mine(), True, 1) == Schedule("Mine", True)


@pytest.mark.parametrize(
    ("dtype", "make", "lost"),
    [
        (torch.float16, AdamW, 1e-8),
        (torch.float16, partial(Adam, eps=1e-6), None),
        (torch.bfloat16, AdamW, None),
        (torch.float32, AdamW, None),
        (torch.float16, partial(SGD, lr=0.1), None),
    ],
)
def test_an_epsilon_is_lost_in_float16_alone(dtype: torch.dtype, make: Any, lost: float | None) -> None:
    assert lost_epsilon(make(nn.Linear(2, 2).to(dtype).parameters())) == lost


def steps(optimizer: Optimizer, model: nn.Module, clear: Any, n: int = 5, before: bool = True) -> list[int]:
    """How many steps in a row were seen not to be cleared, before each step."""
    watch = ClearedGradients()
    found = []
    for _ in range(n):
        if before:
            clear()
        loss = model(torch.ones(4, 3)).square().mean()
        watch.before_backward()
        loss.backward()
        watch.after_backward()
        watch.before_step(optimizer, True)
        found.append(watch.uncleared(optimizer))
        optimizer.step()
        if not before:
            clear()
    return found


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_are_cleared_or_are_not(before: bool, to_none: bool) -> None:
    model = nn.Linear(3, 2)
    optimizer = SGD(model.parameters(), 0.01)
    assert steps(optimizer, model, lambda: optimizer.zero_grad(set_to_none=to_none), before=before) == [0] * 5
    optimizer.zero_grad()
    assert steps(optimizer, model, lambda: None) == [0, 1, 2, 3, 4]


def test_two_optimizers_that_each_clear_their_own_gradients_right_before() -> None:
    generator, critic = nn.Linear(3, 3), nn.Linear(3, 1)
    both = [SGD(part.parameters(), 0.01) for part in (generator, critic)]
    watch = ClearedGradients()
    for _ in range(4):
        for optimizer in reversed(both):
            optimizer.zero_grad(set_to_none=False)
            loss = critic(generator(torch.ones(2, 3))).mean()
            watch.before_backward()
            loss.backward()  # the other one's gradients grow as well
            watch.after_backward()
            watch.before_step(optimizer, True)
            optimizer.step()
    assert [watch.uncleared(optimizer) for optimizer in both] == [0, 0]


def test_backward_passes_that_are_not_told_are_not_judged() -> None:
    model = nn.Linear(3, 2)
    optimizer = SGD(model.parameters(), 0.01)
    watch = ClearedGradients()
    for _ in range(4):
        model(torch.ones(4, 3)).sum().backward()
        watch.before_step(optimizer, True)
        optimizer.step()
    assert watch.uncleared(optimizer) == 0


class Forgetful(Net):
    """Never clears its gradients."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__(net, lr)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.manual_backward(loss)
        self.optimizers().step()  # type: ignore[union-attr]
        return loss


class HeadAlone(Net):
    """The head is frozen, and all that the optimizer holds."""

    def configure_optimizers(self) -> Optimizer:
        self.net.out.requires_grad_(False)  # type: ignore[union-attr]
        return SGD(self.net.out.parameters(), 0.1)  # type: ignore[union-attr]


class Scheduled(Net):
    """A schedule that is stepped once an epoch, after its own `make`."""

    def __init__(self, net: nn.Module, make: Any) -> None:
        super().__init__(net)
        self.make = make

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.net.parameters(), 0.1)
        return [optimizer], [self.make(optimizer)]


def names(diagnosis: Any) -> set[tuple[str, str]]:
    return {(one.severity, one.name) for one in diagnosis.findings if one.severity != "note"}


def test_whole_runs(tmp_path: Path) -> None:
    assert ("warning", "gradients_not_cleared") in names(fit(tmp_path, Forgetful(net(), 0.01)))
    assert ("failing", "not_updated") in names(fit(tmp_path, HeadAlone(net())))
    cycle = partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=48)
    found = fit(tmp_path, Scheduled(net(), cycle)).findings
    assert [(one.severity, one.name, one.evidence.partition(":")[2]) for one in found] == [
        ("warning", "learning_rate_too_low", " OneCycleLR is stepped once an epoch")
    ]
    decay = partial(lr_scheduler.ExponentialLR, gamma=0.5)
    assert names(fit(tmp_path, Scheduled(net(), decay))) == set()
    assert names(fit(tmp_path, Net(net()))) == set()


def test_shares_of_bf16_weights_that_change(tmp_path: Path) -> None:
    """The median of three layers, against the weights before and after each step."""
    from lightning.pytorch import Callback

    shares: dict[int, float] = {}

    class ByHand(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            self.before = [p.detach().clone() for p in module.parameters() if p.ndim > 1]

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            after = [p for p in module.parameters() if p.ndim > 1]
            reached = [p.grad != 0 for p in after]
            changed = [now != before for now, before in zip(after, self.before, strict=True)]
            each = [float((c & r).sum() / r.sum()) for c, r in zip(changed, reached, strict=True)]
            shares[trainer.global_step - 1] = sorted(each)[1]

    class Half(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0].bfloat16()).float(), batch[1])

        def configure_optimizers(self) -> Optimizer:
            return AdamW(self.parameters(), 1e-5)

    module = Half(net(nn.Linear(20, 20), nn.ReLU()))
    diagnosis = fit(tmp_path, module, batches(), callbacks=[ByHand()], precision="bf16-true", max_epochs=2)
    seen = diagnosis._judge.early_changes.at
    assert len(seen) == 23  # steps 0 to 19, and every fifth from then on
    for step, share in seen.items():
        assert math.isclose(share, shares[step], rel_tol=1e-6)
    assert ("warning", "updates_lost_to_rounding") in names(diagnosis)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ((torch.ones(16, 3), torch.arange(16)), 16),
        ((torch.ones(1, 3), torch.ones(1, 1)), 1),
        ((torch.ones(1, 3), torch.tensor([4])), 1),
        ({"ids": torch.arange(7)[None]}, 7),  # words of one text
        ({"x": torch.ones(1, 3, 8, 8), "y": torch.tensor([4])}, None),  # one picture
        ((torch.tensor(3.0), "text"), None),
    ],
)
def test_samples_of_a_batch(batch: Any, samples: int | None) -> None:
    assert samples_of_vectors(batch) == samples
