"""`TrainingDiagnosis` in runs of many kinds: none is changed, the healthy are silent, and a NaN is found in all."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from bnlab_callbacks import TrainingDiagnosis
from tests.diagnosis.small_runs import Net, batches, net
from tests.helpers.silent_trainer import trainer_in

pytestmark = pytest.mark.usefixtures("one_thread")

BAD = 7  # the batch with a NaN, counted from 0


class Stream(IterableDataset[Any]):
    """Batches without a known number."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


class OfMappings(Net):
    """Batches are mappings, as of Hugging Face; the step returns one, too."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step((batch["pixels"], batch["labels"]), batch_idx), "more": 1}


class OfPairs(nn.Module):
    """A net that returns a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.inner(x)
        return y, y.detach()


class First(nn.Module):
    """The first of a pair."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0]


class SkipsSteps(Net):
    """Leaves out every third batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 3 == 2 else super().training_step(batch, batch_idx)


class Closures(Net):
    """L-BFGS: several passes forward and backward in a step."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=4)


class Adaptive(Net):
    """Adam with a schedule that steps with each batch."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Recurrent(LightningModule):
    """An LSTM and regression of several values at once."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.rnn = nn.LSTM(2, 8, batch_first=True)
            self.out = nn.Linear(8, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden, _ = self.rnn(batch[0].unflatten(1, (3, 2)))
        return F.mse_loss(self.out(hidden[:, -1]), F.one_hot(batch[1], 3).float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


class Validates(Net):
    """Validates on its own batches; they count in no statistic, and their NaN is no finding."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert not self.training
        self.log("val_loss", F.cross_entropy(self.net(batch[0] * float("nan")), batch[1]))

    def val_dataloader(self) -> DataLoader[Any]:
        return batches()


class ManyLabels(Net):
    """Labels of which several may hold: binary cross entropy for each."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.net(batch[0]), F.one_hot(batch[1], 3).float())


def mapping(batch: Any) -> dict[str, Tensor]:
    images, labels = zip(*batch, strict=True)
    return {"pixels": torch.stack(images), "labels": torch.stack(labels)}


def usual(bad: int | None) -> DataLoader[Any]:
    return batches(bad=bad)


def of_mappings(bad: int | None) -> DataLoader[Any]:
    return DataLoader(batches(bad=bad).dataset, batch_size=16, collate_fn=mapping)


def stream(bad: int | None) -> DataLoader[Any]:
    return DataLoader(Stream(batches(bad=bad)), batch_size=None)


class Kind(NamedTuple):
    """A kind of run: its module, its batches (one of which may hold a NaN), the Trainer's options in a folder."""

    module: Callable[[], LightningModule] = lambda: Net(net())
    loader: Callable[[int | None], DataLoader[Any]] = usual
    options: Callable[[Path], dict[str, Any]] = lambda folder: {}


def scaled() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))


KINDS = {
    "float64": Kind(options=lambda folder: {"precision": "64-true"}),
    "bf16-mixed": Kind(options=lambda folder: {"precision": "bf16-mixed"}),
    "16-mixed with a loss scaler": Kind(options=lambda folder: {"plugins": [scaled()]}),
    "accumulation": Kind(options=lambda folder: {"accumulate_grad_batches": 4, "max_epochs": 12}),
    "two loggers": Kind(options=lambda folder: {"logger": [CSVLogger(folder), TensorBoardLogger(folder)]}),
    "validation in between": Kind(lambda: Validates(net()), options=lambda folder: {"val_check_interval": 5}),
    "a stream": Kind(loader=stream),
    "mappings": Kind(lambda: OfMappings(net()), of_mappings),
    "pairs": Kind(lambda: Net(nn.Sequential(OfPairs(), First()))),
    "steps left out": Kind(lambda: SkipsSteps(net())),
    "L-BFGS": Kind(lambda: Closures(net())),
    "AdamW with warm-up": Kind(lambda: Adaptive(net())),
    "LSTM, regression": Kind(Recurrent),
    "several labels": Kind(lambda: ManyLabels(net())),
}


def run(name: str, folder: Path, *callbacks: TrainingDiagnosis, bad: int | None = None) -> list[Tensor]:
    """Train; the weights at the end."""
    kind = KINDS[name]
    module = kind.module()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*training_step. returned .None.*")
        trainer_in(folder, callbacks=list(callbacks), **{"max_epochs": 3, **kind.options(folder)}).fit(
            module, kind.loader(bad)
        )
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.parametrize("name", KINDS)
def test_a_healthy_run_of_any_kind_is_silent_and_unchanged(name: str, tmp_path: Path) -> None:
    diagnosis = TrainingDiagnosis()
    with_it, without = run(name, tmp_path, diagnosis), run(name, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))
    assert [finding for finding in diagnosis.findings if finding.severity != "note"] == []
    assert (diagnosis.verdict, diagnosis.active) == ("healthy", False)
    assert diagnosis._judge.losses.count >= 30
    assert diagnosis.state_dict()["seen"]  # it did look


@pytest.mark.parametrize("name", KINDS)
def test_a_nan_is_found_in_a_run_of_any_kind(name: str, tmp_path: Path) -> None:
    diagnosis = TrainingDiagnosis()
    run(name, tmp_path, diagnosis, bad=BAD)
    (finding,) = [each for each in diagnosis.findings if each.name == "non_finite"]
    batches_a_step = 4 if name == "accumulation" else 1  # batches that are left out count as steps, as in Lightning
    assert (finding.since, finding.severity) == (BAD // batches_a_step, "failing")
