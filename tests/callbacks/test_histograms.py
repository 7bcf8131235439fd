"""Histograms of gradients: of which steps, of which layers, of which values."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from bnlab_callbacks.histograms import GradientHistograms
from tests.callbacks.small_runs import Module, hooks_of, loader, mlp, trainer
from tests.callbacks.test_record_file import Boom


def histograms(folder: str | Path) -> dict[str, list[tuple[int, Any]]]:
    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.histogram_value) for event in accumulator.Histograms(tag)]
        for tag in accumulator.Tags()["histograms"]
    }


class Seen(Callback):
    """Keeps the gradients of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps.append({name: each.grad.double() for name, each in pl_module.named_parameters()})


def test_the_first_gradient_of_every_other_epoch(tmp_path: Path) -> None:
    log = TensorBoardLogger(tmp_path, name="", version="", prefix="mine")
    seen = Seen()
    model = Module(mlp())
    trainer(
        GradientHistograms(2), seen, logger=log, max_epochs=5, accumulate_grad_batches=2, gradient_clip_val=1e-3
    ).fit(model, loader(batch_size=4), loader(8))
    read = histograms(tmp_path)
    names = {"mine-grad/00_net.0": "net.0", "mine-grad/01_net.2": "net.2", "mine-grad/02_net.4": "net.4"}
    assert set(read) == set(names)
    for tag, layer in names.items():
        assert [step for step, _ in read[tag]] == [0, 6, 12]
        for step, histogram in read[tag]:
            values = seen.steps[step][f"{layer}.weight"]
            assert histogram.num == values.numel()
            assert histogram.sum == pytest.approx(float(values.sum()), rel=1e-5, abs=1e-9)
            assert (histogram.min, histogram.max) == pytest.approx((float(values.min()), float(values.max())), rel=1e-6)
    assert hooks_of(model) == []


def test_chosen_layers_and_gradients_that_are_not_finite(tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            pl_module.net[2].weight.grad[0, 0] = torch.nan

    log = TensorBoardLogger(tmp_path, name="", version="")
    trainer(GradientHistograms(layers="net.[02]"), Spoil(), logger=log, max_epochs=2).fit(Module(mlp()), loader())
    assert {tag: [step for step, _ in series] for tag, series in histograms(tmp_path).items()} == {"grad/00_net.0": [0]}


def test_nothing_is_left_behind_and_nothing_changes(tmp_path: Path) -> None:
    log = TensorBoardLogger(tmp_path, name="", version="")
    broken, plain, model = Module(mlp()), Module(mlp()), Module(mlp())
    with pytest.raises(RuntimeError, match="boom"):
        trainer(GradientHistograms(), Boom(-1), logger=log).fit(broken, loader())
    assert hooks_of(broken) == []
    trainer(max_epochs=2).fit(plain, loader())
    trainer(GradientHistograms(), logger=log, max_epochs=2).fit(model, loader())
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.warns(UserWarning, match="GradientHistograms is off .*TensorBoard"):
        trainer(GradientHistograms()).fit(Module(mlp()), loader())
    with pytest.raises(ValueError, match="every_n_epochs=0"):
        GradientHistograms(0)
