"""GradientNoise against the paper's formulas in plain loops, and on a problem whose noise is known."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks import GradientNoise
from bnlab_callbacks.recorders import gradient_noise as module_under_test
from bnlab_callbacks.recorders.gradient_noise import GradientNoiseRecorder
from tests.callbacks.small_runs import Module, data, hooks_of, loader, mlp, trainer

TAG = "grad_noise_scale_epoch"


def square(net: nn.Module, x: Tensor, y: Tensor) -> float:
    gradients = torch.autograd.grad(F.mse_loss(net(x), y), list(net.parameters()))
    return sum(float(each.square().sum()) for each in gradients)


def by_hand(steps: int, parts: int, size: int, every: int = 1, samples: int | None = None) -> float:
    """Means of the estimates of appendix A.1 over an epoch, in float64, divided."""
    net = mlp().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    whole = steps * parts * size
    x, y = (each.double()[:whole] for each in data(samples or whole))
    signals, noises = [], []
    for step, (bx, by) in enumerate(zip(x.split(parts * size), y.split(parts * size), strict=True)):
        if step % every == 0:
            pairs = zip(bx.split(size), by.split(size), strict=True)
            small = sum(square(net, *pair) for pair in pairs) / parts
            big = square(net, bx, by)
            signals.append((parts * size * big - size * small) / (parts * size - size))
            noises.append((small - big) / (1 / size - 1 / (parts * size)))
        optimizer.zero_grad()
        F.mse_loss(net(bx), by).backward()
        optimizer.step()
    return sum(noises) / sum(signals) if sum(signals) > 0 else math.inf


@pytest.mark.parametrize(("parts", "every"), [(2, 1), (4, 1), (2, 2)])
def test_the_epoch_s_value_is_that_of_the_formulas(parts: int, every: int) -> None:
    run = trainer(GradientNoise(every), accumulate_grad_batches=parts)
    run.fit(model := Module(mlp()), loader(6 * parts * 2, batch_size=2))
    assert float(run.callback_metrics[TAG]) == pytest.approx(by_hand(6, parts, 2, every), rel=1e-4)
    assert hooks_of(model) == []
    assert not any(parameter._backward_hooks for parameter in model.parameters())


class Mean(nn.Module):
    """Its loss ½|w − x|² has the gradient w − x, whose noise is the variance of x."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((10,), start))


class Estimates(pl.LightningModule):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.net = Mean(start)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.net.w - batch[0]).square().sum(1).mean() / 2

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("start", [1.0, 3.0])
def test_a_problem_whose_noise_is_known(start: float) -> None:
    """tr(Σ) = 10 · 4, |G|² = 10 · start²; 300 records."""
    x = torch.randn(300 * 2 * 8, 10, generator=torch.Generator().manual_seed(0)) * 2
    run = trainer(GradientNoise(1), accumulate_grad_batches=2)
    run.fit(Estimates(start), DataLoader(TensorDataset(x), batch_size=8))
    assert float(run.callback_metrics[TAG]) == pytest.approx(4 / start**2, rel=0.1)


def test_noise_without_a_signal_is_infinite_or_large() -> None:
    x = torch.randn(20 * 2 * 8, 10, generator=torch.Generator().manual_seed(0))
    run = trainer(GradientNoise(1), accumulate_grad_batches=2)
    run.fit(Estimates(0.0), DataLoader(TensorDataset(x), batch_size=8))
    assert float(run.callback_metrics[TAG]) > 50


def test_ranks_are_parts_as_batches_are() -> None:
    """Two ranks of two batches each: this one sees its own gradients, and their mean over all in the end."""
    net, (x, y) = mlp(), data(16)
    recorders = [GradientNoiseRecorder(), GradientNoiseRecorder()]
    gradients = []
    for rank, recorder in enumerate(recorders):
        net.zero_grad()
        recorder.begin(net)
        for part in range(2):
            recorder.add_batch(4)
            own = slice(4 * (2 * rank + part), 4 * (2 * rank + part) + 4)
            (F.mse_loss(net(x[own]), y[own]) / 2 * 1024).backward()  # with a loss scaler
            recorder.after_backward()
        gradients.append([parameter.grad / 1024 for parameter in net.parameters()])  # type: ignore[operator]
    found = []
    for recorder in recorders:
        for parameter, one, other in zip(net.parameters(), *gradients, strict=True):
            parameter.grad = (one + other) / 2
        found.append(recorder.finish(net, 2, 1024.0, 1.0))
    small = sum(square(net, bx, by) for bx, by in zip(x.split(4), y.split(4), strict=True)) / 4
    big = square(net, x, y)
    assert all(found)
    signal, noise = (sum(float(getattr(one, name)) for one in found) / 2 for name in ("signal", "noise"))
    assert signal == pytest.approx((16 * big - 4 * small) / 12, rel=1e-4, abs=1e-7)
    assert noise == pytest.approx((small - big) / (1 / 4 - 1 / 16), rel=1e-4)


def test_weights_are_the_same_bit_for_bit_and_clipping_and_mixed_precision_change_nothing() -> None:
    found, values = [], []
    for callbacks in ([], [GradientNoise(1)]):
        run = trainer(*callbacks, accumulate_grad_batches=2, gradient_clip_val=1e-3)
        run.fit(Module(mlp()), loader(48, batch_size=4))
        found.append(list(run.lightning_module.parameters()))
        values.append(run.callback_metrics.get(TAG))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    run = trainer(GradientNoise(1), accumulate_grad_batches=2, gradient_clip_val=1e-3, plugins=[plugin])
    run.fit(Module(mlp()), loader(48, batch_size=4))
    assert float(run.callback_metrics[TAG]) == pytest.approx(float(values[1]), rel=0.05)  # type: ignore[arg-type]


def test_what_cannot_be_compared_is_said_once() -> None:
    run = trainer(GradientNoise(1), max_epochs=3)
    with pytest.warns(UserWarning, match="nothing to compare") as caught:
        run.fit(Module(mlp()), loader())
    assert len([each for each in caught if "GradientNoise" in str(each.message)]) == 1
    assert TAG not in run.callback_metrics


def test_an_epoch_s_last_smaller_batch_is_left_out() -> None:
    run = trainer(GradientNoise(1), accumulate_grad_batches=2)
    run.fit(Module(mlp()), loader(22, batch_size=4))  # the third step has batches of 4 and 2
    assert float(run.callback_metrics[TAG]) == pytest.approx(by_hand(2, 2, 4, samples=22), rel=1e-4)


def test_an_error_in_a_hook_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(gradient: Tensor) -> None:
        raise ArithmeticError("boom")

    monkeypatch.setattr(module_under_test, "_square", broken)
    run, model = trainer(GradientNoise(1), accumulate_grad_batches=2), Module(mlp())
    with pytest.warns(UserWarning, match=r"GradientNoise is off.*boom"):
        run.fit(model, loader())
    assert run.global_step == 2
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_manual_optimization_is_refused_in_one_line() -> None:
    class Manual(Module):
        def __init__(self) -> None:
            super().__init__(mlp())
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            pass

    with pytest.warns(UserWarning, match="needs automatic optimization"):
        trainer(GradientNoise()).fit(Manual(), loader())
