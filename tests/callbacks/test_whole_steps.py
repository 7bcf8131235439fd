"""Steps that are more than one evaluation, and those that Lightning does not know of, beside plain loops."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    register_optimizer_step_pre_hook,
)

from bnlab_callbacks import ActivationMonitor, GradientMonitor, TrainingDiagnosis
from bnlab_callbacks.core.lightning.raw_steps import RawSteps, optimizer_steps
from tests.callbacks.small_runs import Module, data, hooks_of, loader, memory, mlp, trainer

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = {"00_net.0": 0, "01_net.2": 2, "02_net.4": 4}


class SAM(Optimizer):
    """Sharpness-aware minimization (Foret et al. 2021, arXiv 2010.01412) in the form that most code has."""

    def __init__(self, parameters: Any, rho: float = 0.5, **options: Any) -> None:
        super().__init__(parameters, {"rho": rho, **options})
        self.inner = SGD(self.param_groups, **options)
        self.param_groups = self.inner.param_groups

    def _each(self) -> list[Tensor]:
        return [one for group in self.param_groups for one in group["params"] if one.grad is not None]

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        norm = torch.stack([one.grad.norm() for one in self._each()]).norm()  # type: ignore[union-attr]
        for one in self._each():
            self.state[one]["old"] = one.clone()
            one += self.param_groups[0]["rho"] / (norm + 1e-12) * one.grad
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for one in self._each():
            one.copy_(self.state[one].pop("old"))
        self.inner.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = torch.enable_grad()(closure)()
        self.first_step(zero_grad=True)
        torch.enable_grad()(closure)()
        self.second_step()
        return loss


def sam(parameters: Any) -> Optimizer:
    return SAM(parameters, lr=0.1, momentum=0.9)


def sgd(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9)


def lbfgs(parameters: Any) -> Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.5, max_iter=5)


class Loop(Module):
    """Manual optimization by a function of the module, its optimizer and a batch."""

    def __init__(self, optimizer: Any, make: Callable[["Loop", Any, Any], None], wrapped: bool = False) -> None:
        super().__init__(mlp(), optimizer)
        self.automatic_optimization = False
        self.make, self.wrapped = make, wrapped

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.make(self, self.optimizers(use_pl_optimizer=self.wrapped), batch)

    def loss(self, batch: Any) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])


# ways to make a step


def plain(module: Loop, optimizer: Any, batch: Any) -> None:
    optimizer.zero_grad()
    module.manual_backward(module.loss(batch))
    optimizer.step()


def clipped(module: Loop, optimizer: Any, batch: Any) -> None:
    optimizer.zero_grad()
    module.manual_backward(module.loss(batch))
    nn.utils.clip_grad_norm_(module.parameters(), 0.01)
    optimizer.step()


def own_backward(module: Loop, optimizer: Any, batch: Any) -> None:
    optimizer.zero_grad()
    module.loss(batch).backward()
    optimizer.step()


def closure(module: Loop, optimizer: Any, batch: Any) -> None:
    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = module.loss(batch)
        module.manual_backward(loss)
        return loss

    optimizer.step(evaluate)


def clipping_closure(module: Loop, optimizer: Any, batch: Any) -> None:
    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = module.loss(batch)
        module.manual_backward(loss)
        nn.utils.clip_grad_norm_(module.parameters(), 0.01)
        return loss

    optimizer.step(evaluate)


def own_closure(module: Loop, optimizer: Any, batch: Any) -> None:
    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = module.loss(batch)
        loss.backward()
        return loss

    optimizer.step(evaluate)


def two_steps(module: Loop, optimizer: Any, batch: Any) -> None:
    module.manual_backward(module.loss(batch))
    optimizer.first_step(zero_grad=True)
    module.manual_backward(module.loss(batch))
    optimizer.second_step(zero_grad=True)


def backward_and_closure(module: Loop, optimizer: Any, batch: Any) -> None:
    module.manual_backward(module.loss(batch))
    closure(module, optimizer, batch)


def by_hand(kind: str, clip: bool = False, evaluation: int = 0) -> list[dict[str, tuple[float, float]]]:
    """Root mean squares of the gradient of one of a step's evaluations, before clipping, and log10(‖Δw‖/‖w‖)."""
    net = mlp().double()
    weights = [net[place].weight for place in LAYERS.values()]
    optimizer = {"sgd": sgd, "sam": sam, "lbfgs": lbfgs}[kind](net.parameters())
    x, y = (each.double() for each in data())
    steps = []
    for first in range(0, 24, 8):
        seen: list[list[float]] = []

        def evaluate(first: int = first, seen: list[list[float]] = seen) -> Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(net(x[first : first + 8]), y[first : first + 8])
            loss.backward()
            seen.append([float(w.grad.square().mean().sqrt()) for w in weights])  # type: ignore[union-attr]
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), 0.01)
            return loss

        before = [w.detach().clone() for w in weights]
        optimizer.step(evaluate)
        moves = [math.log10((w.detach() - b).norm() / b.norm()) for w, b in zip(weights, before, strict=True)]
        steps.append(dict(zip(LAYERS, zip(seen[evaluation], moves, strict=True), strict=True)))
    return steps


def fit(model: Module, *more: Any, **options: Any) -> tuple[Any, TrainingDiagnosis]:
    diagnosis = TrainingDiagnosis(summary=False)
    run = trainer(GradientMonitor(), ActivationMonitor(), diagnosis, *more, **options)
    run.fit(model, loader())
    return run, diagnosis


RAW: dict[str, tuple[str, Callable[[Loop, Any, Any], None]]] = {
    "plain": ("sgd", plain),
    "clipped by hand": ("sgd", clipped),
    "its own backward": ("sgd", own_backward),
    "closure": ("sgd", closure),
    "closure that clips": ("sgd", clipping_closure),
    "closure with its own backward": ("sgd", own_closure),
    "SAM's two steps": ("sam", two_steps),
    "L-BFGS": ("lbfgs", closure),
}


@pytest.mark.parametrize("name", RAW)
def test_steps_that_lightning_does_not_know_of(name: str) -> None:
    kind, make = RAW[name]
    model = Loop({"sgd": sgd, "sam": sam, "lbfgs": lbfgs}[kind], make)
    run, diagnosis = fit(model)
    # of SAM's two steps the one that is a step: that at the perturbed weights
    wanted = by_hand(kind, clip="clip" in name, evaluation=int(make is two_steps))
    compare(run, wanted, 2e-4 if kind != "lbfgs" else 2e-2)
    assert (run.global_step, optimizer_steps(run)) == (0, 3)
    assert memory(run).steps("act_mean/00_net.1") == [0, 1, 2]
    assert "vanishing" not in diagnosis.not_checked
    left_nothing(model)


def compare(run: Any, wanted: list[dict[str, tuple[float, float]]], tolerance: float) -> None:
    for layer in LAYERS:
        gradients, moves = (memory(run).series(f"{quantity}/{layer}") for quantity in ("grad_rms", "update_ratio"))
        assert [step for step, _ in gradients] == [0, 1, 2]  # each step once
        for (_, gradient), (_, move), step in zip(gradients, moves, wanted, strict=True):
            assert gradient == pytest.approx(step[layer][0], rel=tolerance)
            assert move == pytest.approx(step[layer][1], abs=tolerance)


def left_nothing(model: nn.Module) -> None:
    assert hooks_of(model) == []
    assert not [hook for hook in _global_optimizer_pre_hooks.values() if isinstance(hook.__self__, RawSteps)]  # type: ignore[attr-defined]
    assert not [hook for hook in _global_optimizer_post_hooks.values() if isinstance(hook.__self__, RawSteps)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["sam", "lbfgs"])
@pytest.mark.parametrize("way", ["automatic", "wrapped"])
def test_a_step_of_several_evaluations_is_one(kind: str, way: str) -> None:
    make = {"sam": sam, "lbfgs": lbfgs}[kind]
    model = Module(mlp(), make) if way == "automatic" else Loop(make, closure, wrapped=True)
    run, _ = fit(model)
    compare(run, by_hand(kind), 2e-4 if kind != "lbfgs" else 2e-2)
    left_nothing(model)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_run_beside_it_is_bit_identical(wrapped: bool) -> None:
    finals = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Loop(sam, two_steps, wrapped)
        callbacks = [GradientMonitor(), ActivationMonitor(), TrainingDiagnosis(summary=False)] if watched else []
        trainer(*callbacks, max_epochs=2).fit(model, loader())
        finals.append([each.detach().clone() for each in model.parameters()])
    for alone, beside in zip(*finals, strict=True):
        assert torch.equal(alone, beside)


def test_vectors_of_raw_steps_are_recorded_too() -> None:
    run = trainer(monitor := GradientMonitor(parameters="all"))
    run.fit(Loop(sgd, clipped), loader())
    assert {"grad_rms/00_net.0", "grad_rms/03_net.0.bias", "update_ratio/05_net.4.bias"} <= monitor.latest.keys()
    several = trainer(GradientMonitor(parameters="all"))
    several.fit(model := Loop(sam, closure), loader(8))
    before, after = mlp()[4].bias.detach().double(), model.net[4].bias.detach().double()  # type: ignore[index, union-attr]
    move = math.log10((after - before).norm() / before.norm())
    assert memory(several).series("update_ratio/05_net.4.bias")[0][1] == pytest.approx(move, abs=1e-4)


def test_several_steps_on_one_batch_are_measured_by_their_first() -> None:
    def five(module: Loop, optimizer: Any, batch: Any) -> None:
        for _ in range(5):
            closure(module, optimizer, batch)

    run, _ = fit(Loop(lbfgs, five))
    once, _ = fit(Loop(lbfgs, closure))
    assert optimizer_steps(run) == 15
    for layer in LAYERS:
        for quantity in ("grad_rms", "update_ratio"):
            first, alone = (memory(each).series(f"{quantity}/{layer}")[0] for each in (run, once))
            assert first == alone


def test_weights_that_are_changed_behind_a_step_are_no_part_of_it() -> None:
    """As a Wasserstein critic's, which are clipped."""

    def critic(module: Loop, optimizer: Any, batch: Any) -> None:
        plain(module, optimizer, batch)
        with torch.no_grad():
            for each in module.parameters():
                each.clamp_(-0.01, 0.01)

    ours, usual = fit(Loop(sgd, critic))[0], fit(Loop(sgd, plain))[0]
    for layer in LAYERS:
        assert memory(ours).series(f"update_ratio/{layer}")[0] == memory(usual).series(f"update_ratio/{layer}")[0]


def test_an_optimizer_that_the_trainer_does_not_know_is_seen() -> None:
    class Own(Loop):
        def configure_optimizers(self) -> Any:
            self.hidden = sgd(self.net.parameters())

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            plain(self, self.hidden, batch)

    with pytest.warns(UserWarning, match="configure_optimizers"):
        run, _ = fit(Own(sgd, plain))
    compare(run, by_hand("sgd"), 2e-4)


def test_optimizers_of_something_else_are_none_of_the_run() -> None:
    other = nn.Linear(3, 1)

    def beside(module: Loop, optimizer: Any, batch: Any) -> None:
        aside = SGD(other.parameters(), lr=0.1)
        other(torch.ones(2, 3)).sum().backward()
        aside.step()
        plain(module, optimizer, batch)

    run, _ = fit(Loop(sgd, beside))
    assert optimizer_steps(run) == 3
    compare(run, by_hand("sgd"), 2e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_leaves_out_is_none(fused: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)

    def scaled(module: Loop, optimizer: Any, batch: Any) -> None:
        optimizer.zero_grad()
        module.manual_backward(module.loss(batch))
        scaler.step(optimizer)
        scaler.update(new_scale=1024.0)

    model = Loop(lambda parameters: SGD(parameters, lr=0.1, fused=fused), scaled)
    run, _ = fit(model, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert optimizer_steps(run) == 2
    assert memory(run).steps("grad_rms/00_net.0") == [1, 2]
    x, y = data()
    net = mlp()
    F.mse_loss(net(x[8:16]), y[8:16]).backward()
    assert net[4].weight.grad is not None
    rms = float(net[4].weight.grad.square().mean().sqrt())
    assert memory(run).series("grad_rms/02_net.4")[0][1] == pytest.approx(rms, rel=1e-2)  # free of the scale


def test_an_error_in_a_hook_ends_the_diagnostics_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RawSteps, "_own", lambda self, optimizer: 1 / 0)
    model = Loop(sgd, plain)

    class Other(pl.Callback):
        """Somebody with a hook of his own, behind ours."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            handles.append(register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: None))

    handles: list[Any] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run, _ = fit(model, Other())
    handles[0].remove()
    said = [str(each.message) for each in caught if "ZeroDivisionError" in str(each.message)]
    assert [text.partition(" ")[0] for text in said] == ["GradientMonitor", "ActivationMonitor", "TrainingDiagnosis"]
    assert run.fit_loop.epoch_loop.total_batch_idx == 2
    left_nothing(model)


def test_plain_optimizers_of_automatic_optimization_get_no_hook() -> None:
    class Look(GradientMonitor):
        def on_train_batch_end(self, trainer: Any, *others: Any) -> None:
            super().on_train_batch_end(trainer, *others)
            assert self._raw_steps is None

    trainer(Look()).fit(Module(mlp(), AdamW), loader())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch.optim.Muon")
def test_muon_and_16_bit_weights_move_as_far_as_their_values_do() -> None:
    net = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    run = trainer(GradientMonitor(), precision="bf16-true")
    model = Module(net, lambda parameters: torch.optim.Muon(parameters, lr=0.05))
    before = [each.detach().bfloat16().double() for each in net.parameters()]
    run.fit(model, loader(8))
    after = [each.detach().double() for each in net.parameters()]
    for layer, then, now in zip(("00_net.0", "01_net.2"), before, after, strict=True):
        move = math.log10((now - then).norm() / then.norm())
        assert memory(run).series(f"update_ratio/{layer}")[0][1] == pytest.approx(move, abs=1e-4)
