"""Manual optimization with the optimizers themselves, whose steps Lightning does not hear of."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from bnlab_callbacks import ActivationMonitor, GradientMonitor, TrainingDiagnosis
from bnlab_callbacks.core.lightning.raw_steps import optimizer_steps
from tests.callbacks.small_runs import Module, hooks_of, loader, memory, mlp, trainer


class Manual(Module):
    """Makes its steps itself: with Lightning's wrapper around the optimizer, or without."""

    def __init__(self, net: nn.Module, wrapped: bool, every: int = 1) -> None:
        super().__init__(net)
        self.automatic_optimization = False
        self.wrapped, self.every = wrapped, every

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers(use_pl_optimizer=self.wrapped)
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.manual_backward(loss)
        if (batch_idx + 1) % self.every == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss


def run(wrapped: bool, every: int = 1, **options: Any) -> tuple[Any, Module, TrainingDiagnosis]:
    module, diagnosis = Manual(mlp(), wrapped, every), TrainingDiagnosis(summary=False)
    fit = trainer(GradientMonitor(), ActivationMonitor(), diagnosis, max_epochs=2, **options)
    fit.fit(module, loader(48))
    return fit, module, diagnosis


@pytest.mark.parametrize("every", [1, 3])
def test_records_are_those_of_steps_that_lightning_hears_of(every: int) -> None:
    (told, same, _), (fit, module, diagnosis) = run(True, every), run(False, every)
    assert (told.global_step, fit.global_step, optimizer_steps(fit)) == (12 // every, 0, 12 // every)
    for ours, theirs in zip(module.parameters(), same.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    quantities = ("grad_", "update_", "act_", "zero_", "dead_frac")
    tags = {tag for tag in memory(told).tags() if tag.startswith(quantities)}
    assert {"grad_rms/00_net.0", "update_ratio/02_net.4", "act_mean/00_net.1"} <= tags
    for tag in tags:
        assert memory(fit).series(tag) == memory(told).series(tag), tag
    assert "vanishing" not in diagnosis.not_checked
    assert hooks_of(module) == []
    assert fit.optimizers[0]._optimizer_step_pre_hooks == {}


def test_a_loss_scaler_s_step_is_not_told_of_twice() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    fit, _, _ = run(True, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert (fit.global_step, optimizer_steps(fit)) == (12, 12)


def test_automatic_optimization_puts_no_hook_on_an_optimizer() -> None:
    class Look(TrainingDiagnosis):
        def on_train_batch_end(self, trainer: Any, *others: Any) -> None:
            super().on_train_batch_end(trainer, *others)
            assert trainer.optimizers[0]._optimizer_step_pre_hooks == {}

    trainer(Look(summary=False)).fit(Module(mlp()), loader())


def test_what_waits_for_a_step_that_is_never_made_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnlab_callbacks.recorders import forward_recorder

    monkeypatch.setattr(forward_recorder, "_MOST_PENDING", 5)
    most = 0

    class Look(ActivationMonitor):
        def end_batch(self, trainer: Any) -> None:
            nonlocal most
            super().end_batch(trainer)
            most = max(most, len(self._recorder._pending))

    trainer(Look(), max_epochs=2).fit(Manual(mlp(), True, every=1000), loader(48))
    assert 0 < most <= 5
