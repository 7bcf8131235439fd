"""Classifier trains as the thesis's section 6.2 says, and as a plain PyTorch loop would, to the last bit."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab import Classifier, ImageDataModule
from tests.helpers.silent_trainer import trainer_in

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seed_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffle with seed 0, whatever another test seeded."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def batches(n: int = 6, batch_size: int = 3) -> DataLoader[Any]:
    """Return n random 2×2 images of two classes, in batches, always the same."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(n, 1, 2, 2, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(n) % 2), batch_size)


def tiny(**options: Any) -> Classifier:
    return Classifier(num_classes=2, image_size=(2, 2), **options)


def same_bits(net: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers are equal, and not because all are NaN."""
    mine, theirs = net.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# Optimizer


def test_the_defaults_are_the_thesis_optimizer() -> None:
    configured: Any = tiny().configure_optimizers()
    optimizer = configured["optimizer"]
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.01, 0.9, True)
        assert (group["dampening"], group["weight_decay"], group["maximize"]) == (0, 0, False)


def test_without_momentum_it_is_plain_sgd() -> None:
    configured: Any = tiny(momentum=0.0).configure_optimizers()
    assert [group["nesterov"] for group in configured["optimizer"].param_groups] == [False, False]


def test_two_steps_are_nesterovs_formula(tmp_path: Path) -> None:
    """Velocity v ← 0.9 v + g, weight w ← w − 0.01 (g + 0.9 v), with autograd's g and nothing of torch.optim."""
    model = tiny(activation="tanh")
    plain = copy.deepcopy(model.net)
    trainer_in(tmp_path, max_epochs=1).fit(model, batches(), batches())

    velocity = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    for images, labels in batches():
        gradients = torch.autograd.grad(F.cross_entropy(plain(images), labels), list(plain.parameters()))
        with torch.no_grad():
            for w, v, g in zip(plain.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g)
                w.sub_(0.01 * (g + 0.9 * v))
    for w, expected in zip(model.net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-7)


# The Lightning plumbing adds nothing


def plain_fit(net: nn.Module, data: ImageDataModule, epochs: int, accumulate: int = 1) -> list[float]:
    """Train `net` with a loop that anybody would write; return the mean loss of each epoch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    loader = data.train_dataloader()
    net.train()
    means = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined] # an EpochSampler
        losses = []
        for index, (pixels, labels) in enumerate(loader):
            loss = F.cross_entropy(net((pixels - data.mean) / data.std), labels)
            (loss / accumulate).backward()
            losses.append(loss.item())
            if (index + 1) % accumulate == 0 or index + 1 == len(loader):
                optimizer.step()
                optimizer.zero_grad()
        means.append(float(np.mean(losses)))  # all batches have the same size
    return means


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("batch_norm", [False, True], ids=["vanilla", "bn"])
def test_a_fit_on_digits_equals_a_plain_loop_bit_for_bit(tmp_path: Path, batch_norm: bool, accumulate: int) -> None:
    data = ImageDataModule()
    model = Classifier(batch_norm=batch_norm)
    plain, untrained = copy.deepcopy(model.net), copy.deepcopy(model.net)
    trainer = trainer_in(tmp_path, max_epochs=2, accumulate_grad_batches=accumulate)
    trainer.fit(model, datamodule=data)

    fresh = ImageDataModule()
    fresh.setup("fit")
    losses = plain_fit(plain, fresh, epochs=2, accumulate=accumulate)
    assert same_bits(model.net, plain)
    assert not same_bits(model.net, untrained)
    assert losses[1] < losses[0]
    assert trainer.logged_metrics["train_loss"].item() == pytest.approx(losses[1], rel=1e-6)


def test_batch_norm_trains_where_a_last_batch_of_one_is_left_over(tmp_path: Path) -> None:
    """BatchNorm1d raises on a batch of one, so training leaves it out."""
    rng = np.random.default_rng(0)
    for name, n in (("train", 19), ("test", 4)):
        images = rng.integers(0, 256, (n, 4, 4), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(n) % 2)
    data = ImageDataModule("npz", str(tmp_path), batch_size=8, val_fraction=0.1)
    data.setup("fit")
    assert data.sample_counts["train"] == 17  # 2 · 8 + 1
    model = Classifier(batch_norm=True, num_classes=2, in_channels=1, image_size=data.image_size)
    trainer = trainer_in(tmp_path, max_epochs=2)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 4
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# Learning rate and early stopping


class Scripted(Classifier):
    """Has the validation accuracies of a script, whatever it learns."""

    script: tuple[float, ...]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_acc", self.script[self.current_epoch])


class LearningRates(Callback):
    """Notes the learning rate that each epoch begins with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def scripted(*script: float, **options: Any) -> Scripted:
    model = Scripted(num_classes=2, image_size=(2, 2), **options)
    model.script = script
    return model


def logged(folder: Path, name: str) -> list[float]:
    with open(folder / "metrics.csv", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.parametrize(
    ("options", "script", "epochs_at_rate"),
    [
        ({}, (0.5,) * 12, {0.01: 6, 0.005: 5, 0.0025: 1}),  # epoch 0 is the best; five bad ones, twice
        ({}, (0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0), {0.01: 6, 0.005: 1}),
        ({}, (0.5,) * 5 + (0.6,) * 7, {0.01: 11, 0.005: 1}),  # four bad ones, then one better: counted anew
        ({}, tuple(0.9 + 1e-6 * epoch for epoch in range(8)), {0.01: 8}),  # the least improvement is one
        ({"lr": 0.1, "lr_factor": 0.1, "lr_patience": 1}, (0.5, 0.5, 0.5), {0.1: 2, 0.01: 1}),
    ],
    ids=["flat", "falling", "rescued", "creeping", "arguments"],
)
def test_the_rate_falls_after_exactly_so_many_epochs_without_improvement(
    tmp_path: Path, options: dict[str, Any], script: tuple[float, ...], epochs_at_rate: dict[float, int]
) -> None:
    rates = LearningRates()
    logger = CSVLogger(tmp_path, name=None, version="")
    trainer = trainer_in(tmp_path, max_epochs=len(script), callbacks=[rates], logger=logger, log_every_n_steps=1)
    trainer.fit(scripted(*script, **options), batches(), batches())
    expected = [rate for rate, epochs in epochs_at_rate.items() for _ in range(epochs)]
    assert rates.seen == pytest.approx(expected, rel=1e-12)
    assert logged(tmp_path, "lr") == pytest.approx(expected, rel=1e-6)  # logged as float32


def test_with_fewer_validations_each_counts_once(tmp_path: Path) -> None:
    """Validated after epochs 1, 3, 5: the rate is not judged in between, by an accuracy that is missing or stale."""
    rates = LearningRates()
    trainer = trainer_in(tmp_path, max_epochs=7, check_val_every_n_epoch=2, callbacks=[rates])
    trainer.fit(scripted(*(0.5,) * 7, lr_patience=2), batches(), batches())
    assert rates.seen == [0.01] * 6 + [0.005]


@pytest.mark.parametrize(
    ("script", "epochs"),
    [
        ((0.5,) * 30, 21),  # the best, and twenty without improvement
        ((0.5,) * 20 + (0.6,) * 30, 41),  # nineteen bad ones are forgiven
    ],
)
def test_early_stopping_acts_on_the_twentieth_epoch_without_improvement(
    tmp_path: Path, script: tuple[float, ...], epochs: int
) -> None:
    stopping = EarlyStopping("val_acc", mode="max", patience=20, min_delta=0.0)
    trainer = trainer_in(tmp_path, max_epochs=60, callbacks=[stopping], limit_train_batches=1)
    trainer.fit(scripted(*script), batches(), batches())
    assert trainer.current_epoch == epochs
    assert stopping.stopped_epoch == epochs - 1
