"""Loss and accuracy as Classifier reports them, against NumPy."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab import Classifier
from bnlab.data import IGNORED
from bnlab.training.epoch_totals import EpochTotals
from tests.helpers.silent_trainer import trainer_in

pytestmark = pytest.mark.usefixtures("one_thread")


def samples(n: int, classes: int, placeholders: int = 0) -> tuple[Tensor, Tensor]:
    """Return n random 2×2 images with random labels, the last `placeholders` of them IGNORED."""
    generator = torch.Generator().manual_seed(n)
    images = torch.randn(n, 1, 2, 2, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    labels[n - placeholders :] = IGNORED
    return images, labels


def loader(images: Tensor, labels: Tensor, batch_size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, labels), batch_size)


def tiny(classes: int = 3, **options: Any) -> Classifier:
    return Classifier(num_classes=classes, image_size=(2, 2), **options)


def in_numpy(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss, accuracy and top-5 accuracy over the samples that are not place-holders, in float64."""
    z: npt.NDArray[np.float64] = logits.detach().double().numpy()[labels.numpy() != IGNORED]
    y = labels.numpy()[labels.numpy() != IGNORED]
    shifted = z - z.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    best_five = np.argsort(-z, axis=1)[:, :5]
    return {
        "loss": float(-log_probabilities[np.arange(len(y)), y].mean()),
        "acc": float((z.argmax(1) == y).mean()),
        "acc_top5": float((best_five == y[:, None]).any(1).mean()),
    }


# EpochTotals


def random_batches(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 4, generator=generator), torch.randint(4, (n,), generator=generator)) for n in sizes]


UNEVEN = [1, 7, 3, 12, 5] * 8 + [2]  # 41 batches: two full folds of 16 and nine left


def test_totals_equal_the_plain_mean_over_samples_in_every_epoch() -> None:
    totals = EpochTotals()
    for sizes in (UNEVEN, [64] * 16, [3], UNEVEN[::-1]):
        batches = random_batches(sizes)
        for logits, labels in batches:
            totals.add(F.cross_entropy(logits, labels), logits, labels)
        found = totals.pop()
        assert found is not None
        expected = in_numpy(torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches]))
        assert found.loss.item() == pytest.approx(expected["loss"], rel=1e-6)
        assert found.accuracy.item() == pytest.approx(expected["acc"], rel=1e-6)
        assert totals.pop() is None  # nothing is left over


def test_totals_weigh_batches_by_their_samples() -> None:
    """By hand: (1 · 5.0 + 3 · 1.0) / 4; three of four correct."""
    totals = EpochTotals()
    totals.add(torch.tensor(5.0), torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    totals.add(torch.tensor(1.0), torch.tensor([[0.0, 1.0]]).expand(3, 2), torch.tensor([1, 1, 1]))
    found = totals.pop()
    assert found is not None
    assert (found.loss.item(), found.accuracy.item()) == (2.0, 0.75)


def test_totals_count_exactly_beyond_what_half_precision_holds() -> None:
    totals = EpochTotals()
    for _ in range(40):
        totals.add(torch.tensor(2.0, dtype=torch.bfloat16), torch.eye(2, dtype=torch.bfloat16), torch.tensor([0, 0]))
    totals.add(torch.tensor(2.0, dtype=torch.bfloat16), torch.ones(2001, 2, dtype=torch.bfloat16), torch.zeros(2001))
    found = totals.pop()
    assert found is not None
    assert found.loss.item() == 2.0
    assert found.accuracy.item() == pytest.approx(2041 / 2081, rel=1e-6)


@pytest.mark.parametrize("batches", [5, 16, 20])
def test_totals_keep_no_autograd_graph(batches: int) -> None:
    """What the graph holds (here a factor saved for the backward pass) is freed before the epoch ends."""
    totals = EpochTotals()
    saved = []
    for _ in range(batches):
        weight = torch.ones(2, 2, requires_grad=True)
        factor = torch.full((2, 2), 2.0)
        saved.append(weakref.ref(factor))
        logits = weight * factor  # keeps `factor` for the gradient of `weight`
        totals.add(logits.sum(), logits, torch.tensor([0, 1]))
        del weight, factor, logits
    gc.collect()
    assert [reference() for reference in saved] == [None] * batches
    found = totals.pop()
    assert found is not None
    assert not found.loss.requires_grad


def test_totals_of_a_diverged_epoch_are_nan_and_the_share_of_class_0() -> None:
    totals = EpochTotals()
    totals.add(torch.tensor(1.0), torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    totals.add(torch.tensor(torch.nan), torch.full((3, 2), torch.nan), torch.tensor([0, 0, 1]))
    found = totals.pop()
    assert found is not None
    assert found.loss.isnan()
    assert found.accuracy.item() == 0.75
    totals.add(torch.tensor(1.0), torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    again = totals.pop()
    assert again is not None
    assert (again.loss.item(), again.accuracy.item()) == (1.0, 1.0)


# In training


class Frozen(Classifier):
    """Does not learn, so that an epoch's averages can be computed afterwards."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer_closure()


class Losses:
    """Notes the loss of every training step, as `training_step` returns it."""

    def __init__(self, module: Classifier) -> None:
        self.seen: list[float] = []
        step = module.training_step

        def noting(batch: Any, batch_idx: int) -> Tensor:
            loss = step(batch, batch_idx)
            self.seen.append(loss.item())
            return loss

        module.training_step = noting  # type: ignore[method-assign]


def test_the_training_averages_are_over_samples_not_batches(tmp_path: Path) -> None:
    images, labels = samples(65, 3)  # 22 batches, the last of two
    model = Frozen(num_classes=3, image_size=(2, 2))
    trainer = trainer_in(tmp_path, max_epochs=2)
    trainer.fit(model, loader(images, labels, 3), loader(images, labels, 65))
    expected = in_numpy(model(images), labels)
    for stage in ("train", "val"):  # the same images
        assert trainer.logged_metrics[f"{stage}_loss"].item() == pytest.approx(expected["loss"], rel=1e-6)
        assert trainer.logged_metrics[f"{stage}_acc"].item() == pytest.approx(expected["acc"], rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_of_a_step_is_logged_as_it_was(tmp_path: Path, accumulate: int) -> None:
    """On steps 0, 2, 4 of every epoch; under accumulation it is that of a step's first batch, not a part of it."""
    images, labels = samples(10, 3)
    model = tiny()
    losses = Losses(model)
    logger = CSVLogger(tmp_path, name=None, version="")
    rows: list[tuple[int | None, dict[str, float]]] = []
    logger.log_metrics = lambda metrics, step=None: rows.append((step, metrics))  # type: ignore[method-assign]
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate, "log_every_n_steps": 2}
    trainer = trainer_in(tmp_path, max_epochs=1, logger=logger, **options)
    trainer.fit(model, loader(images, labels, 1), loader(images, labels, 10))
    steps = range(0, 10 // accumulate, 2)
    expected = [(step, pytest.approx(losses.seen[step * accumulate], rel=1e-6)) for step in steps]
    assert [(step, row["train_loss_step"]) for step, row in rows if "train_loss_step" in row] == expected


def test_a_second_fit_of_the_same_module_starts_anew(tmp_path: Path) -> None:
    """What the first one, broken off, had counted is not part of the second's averages."""
    images, labels = samples(6, 3)

    class Raises(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 1:
                raise RuntimeError("broken off")

    model = Frozen(num_classes=3, image_size=(2, 2))
    with pytest.raises(RuntimeError, match="broken off"):
        trainer_in(tmp_path, max_epochs=1, callbacks=[Raises()]).fit(model, loader(images[:4], labels[:4], 2))
    trainer = trainer_in(tmp_path, max_epochs=1)
    trainer.fit(model, loader(images[4:], labels[4:], 2), loader(images, labels, 6))
    expected = in_numpy(model(images[4:]), labels[4:])
    assert trainer.logged_metrics["train_loss"].item() == pytest.approx(expected["loss"], rel=1e-6)


# In evaluation


@pytest.mark.parametrize(
    ("n", "placeholders", "batch_size"),
    [(1, 0, 4), (13, 0, 4), (17, 1, 5), (17, 3, 5), (18, 8, 5)],  # the last: a batch of place-holders only
)
@pytest.mark.parametrize("stage", ["val", "test"])
def test_evaluation_is_exact_and_ignores_placeholders(
    tmp_path: Path, stage: str, n: int, placeholders: int, batch_size: int
) -> None:
    images, labels = samples(n, 3, placeholders)
    images[n - placeholders :] = 1e6  # a place-holder's image must not matter
    model = tiny()
    trainer = trainer_in(tmp_path)
    run = trainer.validate if stage == "val" else trainer.test
    (found,) = run(model, loader(images, labels, batch_size), verbose=False)
    with torch.no_grad():
        expected = in_numpy(model(images), labels)
    assert set(found) == {f"{stage}_loss", f"{stage}_acc"}  # no top-5 accuracy among three classes
    assert found[f"{stage}_loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found[f"{stage}_acc"] == pytest.approx(expected["acc"], rel=1e-6)


@pytest.mark.parametrize("classes", [99, 100, 120])
def test_the_best_five_count_from_a_hundred_classes_on(tmp_path: Path, classes: int) -> None:
    images, labels = samples(301, classes, placeholders=1)
    model = tiny(classes)
    with torch.no_grad():
        logits = model(images)
        # a label among the first ten guesses, so that the sixth is often the right one
        labels[:300] = logits[:300].topk(10).indices[torch.arange(300), torch.arange(300) % 10]
    (found,) = trainer_in(tmp_path).test(model, loader(images, labels, 64), verbose=False)
    expected = {"test_loss", "test_acc"} | ({"test_acc_top5"} if classes >= 100 else set())
    assert set(found) == expected
    in_double = in_numpy(logits, labels)
    assert in_double["acc_top5"] == 0.5
    assert found["test_acc"] == pytest.approx(0.1, rel=1e-6)
    if classes >= 100:
        assert found["test_acc_top5"] == pytest.approx(0.5, rel=1e-6)


def test_a_diverged_net_has_the_accuracy_of_class_0_and_no_loss(tmp_path: Path) -> None:
    """Its logits are all NaN; a result, not a crash, and not a silently dropped batch."""
    images, labels = samples(13, 3)
    model = tiny()
    nn.init.constant_(next(model.net.parameters()), torch.nan)
    (found,) = trainer_in(tmp_path).validate(model, loader(images, labels, 4), verbose=False)
    assert found["val_acc"] == pytest.approx((labels == 0).double().mean().item(), rel=1e-6)
    assert np.isnan(found["val_loss"])


def test_one_loss_that_is_no_number_is_not_left_out_of_the_average(tmp_path: Path) -> None:
    images, labels = samples(13, 3)
    model = tiny()
    with torch.no_grad():
        guesses = model(images).argmax(1)
    images[6] = torch.nan
    labels[6] = 0  # what NaN logits guess
    guesses[6] = 0
    (found,) = trainer_in(tmp_path).validate(model, loader(images, labels, 4), verbose=False)
    assert found["val_acc"] == pytest.approx((guesses == labels).double().mean().item(), rel=1e-6)
    assert np.isnan(found["val_loss"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_predictions_are_probabilities_in_float32_or_wider(tmp_path: Path, precision: Any) -> None:
    images, labels = samples(9, 3)
    model = tiny()
    plain = torch.softmax(model(images).detach().double(), 1)
    batches = trainer_in(tmp_path, precision=precision).predict(model, loader(images, labels, 4))
    assert batches is not None
    probabilities = torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
    assert probabilities.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    assert probabilities.shape == (9, 3)
    torch.testing.assert_close(probabilities.sum(1).double(), torch.ones(9).double(), rtol=0, atol=1e-6)
    half = precision.startswith("bf16")
    torch.testing.assert_close(probabilities.double(), plain, rtol=0, atol=0.03 if half else 1e-6)
