"""The task, from losses of many kinds in real runs; without a task of the batch it stays unknown."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks import TrainingDiagnosis
from bnlab_callbacks.diagnosis.observations import KINDS, Facts, Task
from tests.diagnosis.small_runs import batches, fit, net
from tests.diagnosis.test_rules import history
from tests.helpers.silent_trainer import trainer_in

pytestmark = pytest.mark.usefixtures("one_thread")

Loss = Callable[[Tensor, Tensor], Tensor]


class Any3(LightningModule):
    """Six inputs, three outputs and any loss; Adam."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.net, self.loss = net(), loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def numbers(shape: tuple[int, ...] = (256, 3), mean: float = 0.0) -> DataLoader[Any]:
    """The usual inputs with targets of variance 4."""
    y = 2 * torch.randn(256, 3, generator=torch.Generator().manual_seed(4)).flatten()[: math.prod(shape)] + mean
    return DataLoader(TensorDataset(batches().dataset[:][0], y.reshape(shape)), batch_size=16)


def task_of(folder: Path, loss: Loss, loader: DataLoader[Any] | None = None) -> TrainingDiagnosis:
    return fit(folder, Any3(loss), loader, max_epochs=1)  # type: ignore[no-any-return]


def one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels, 3).float()


def focal(o: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(o, y, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


CLASSES: dict[str, Loss] = {
    "indices": F.cross_entropy,
    "a penalty beside it": lambda o, y: F.cross_entropy(o, y) + 0.01 * o.square().mean(),
    "one-hot": lambda o, y: F.cross_entropy(o, one_hot(y)),
    "smoothed": lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1),
    "log probabilities": lambda o, y: F.nll_loss(o.log_softmax(1), y),
    "gathered by hand": lambda o, y: -o.log_softmax(1).gather(1, y[:, None]).mean(),
    "probabilities by hand": lambda o, y: -o.softmax(1)[torch.arange(len(y)), y].log().mean(),
    "one-hot by hand": lambda o, y: -(one_hot(y) * o.log_softmax(1)).sum(1).mean(),
    "a distribution's": lambda o, y: -torch.distributions.Categorical(logits=o).log_prob(y).mean(),
    "shape (1,)": lambda o, y: torch.zeros(1) + F.cross_entropy(o, y),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classifications(tmp_path: Path, name: str) -> None:
    facts = task_of(tmp_path, CLASSES[name])._judge.facts
    assert (facts.task.name, facts.task.classes) == ("cross_entropy", 3)
    assert (facts.task.label_low, facts.task.label_high, facts.task.label_count) == (0, 2, 256)
    assert facts.chance_loss == pytest.approx(math.log(3))


def test_a_focal_loss_is_a_classification_whose_baseline_is_unknown(tmp_path: Path) -> None:
    diagnosis = task_of(tmp_path, focal)
    assert (diagnosis._judge.facts.task.name, diagnosis._judge.facts.chance_loss) == ("cross_entropy", None)
    assert diagnosis._judge.observations[-1].globals["explained"] > 0.3  # of its own cross entropy


def test_shares_of_classes_are_the_baseline(tmp_path: Path) -> None:
    x, _ = batches().dataset[:]
    rare = DataLoader(TensorDataset(x, (torch.arange(256) % 16 == 0).long()), batch_size=16)
    shares = torch.tensor([241.0, 17.0, 1.0]) / 259  # one more of each
    found = task_of(tmp_path, F.cross_entropy, rare)._judge.facts.chance_loss
    assert found == pytest.approx(-float((shares * shares.log()).sum()), rel=1e-5)


ERRORS: dict[str, tuple[Loss, float]] = {  # and the loss of the mean, or median, of targets with variance 4
    "mse": (F.mse_loss, 4.0),
    "by hand": (lambda o, y: ((o - y) ** 2).mean(), 4.0),
    "half a sum over columns": (lambda o, y: (y - o).square().sum(1).mean() / 2, 6.0),
    "root": (lambda o, y: F.mse_loss(o, y).sqrt(), 2.0),
    "a sum": (lambda o, y: 10 * F.mse_loss(o, y, reduction="sum"), 16 * 3 * 40.0),
    "absolute": (F.l1_loss, 2 * math.sqrt(2 / math.pi)),
    "absolute by hand": (lambda o, y: (o - y).abs().mean(), 2 * math.sqrt(2 / math.pi)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_measured_by_the_best_constant(tmp_path: Path, name: str) -> None:
    loss, expected = ERRORS[name]
    facts = task_of(tmp_path, loss, numbers())._judge.facts
    assert facts.task.name == ("absolute" if "absolute" in name else "squared")
    assert facts.chance_loss == pytest.approx(expected, rel=0.1)


def test_the_mean_of_targets_is_no_part_of_the_baseline(tmp_path: Path) -> None:
    facts = task_of(tmp_path, F.mse_loss, numbers(mean=1000.0))._judge.facts
    assert facts.chance_loss == pytest.approx(4.0, rel=0.1)


def test_numbers_between_0_and_1(tmp_path: Path) -> None:
    for loss in (F.binary_cross_entropy_with_logits, lambda o, y: F.binary_cross_entropy(o.sigmoid(), y)):
        facts = task_of(tmp_path, lambda o, y, of=loss: of(o, one_hot(y)))._judge.facts  # type: ignore[misc]
        assert facts.task.name == "binary"
        third = math.log(3) - 2 / 3 * math.log(2)
        assert facts.chance_loss == pytest.approx(third, rel=0.01)


def test_what_is_no_comparison_with_the_batch_stays_unknown(tmp_path: Path) -> None:
    def policy(o: Tensor, y: Tensor) -> Tensor:
        choices = torch.distributions.Categorical(logits=o)
        chosen = choices.sample()
        reward = (chosen == y).float()
        return -((reward - reward.mean()) * choices.log_prob(chosen)).mean()

    unknown: list[Loss] = [
        policy,
        lambda o, y: F.cross_entropy(o @ o.T, torch.arange(len(o))),  # contrastive
        lambda o, y: F.mse_loss(o, (2 * o).detach()),  # a teacher
        lambda o, y: F.binary_cross_entropy_with_logits(o, torch.ones(len(o), 1).type_as(o).expand_as(o)),
    ]
    for loss in unknown:
        diagnosis = task_of(tmp_path, loss)
        assert (diagnosis._judge.facts.task.name, diagnosis._judge.facts.chance_loss) == ("", None)
        assert "targets of the batch" in diagnosis.not_checked["not_learning"]


def test_token_ids_and_masks_are_no_labels(tmp_path: Path) -> None:
    class Forecast(Any3):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, group, mask = batch
            mean, scale = self.net(x)[:, :2].unbind(1)
            return (((x[:, 0] - mean) / scale.exp()).square() / 2 + scale + 0 * group[:, 0] * mask[:, 0]).mean()

    x, y = batches().dataset[:]
    loader = DataLoader(TensorDataset(x, y[:, None] * 0, torch.ones(256, 3, dtype=torch.long)), batch_size=16)
    diagnosis = fit(tmp_path, Forecast(F.mse_loss), loader, max_epochs=1)
    assert (diagnosis._judge.facts.task.name, diagnosis._judge.facts.chance_loss) == ("", None)


FAULTS: dict[str, tuple[Loss, Callable[[], DataLoader[Any]], str]] = {
    "(N, 3) are not broadcast": (lambda o, y: F.mse_loss(o, y), numbers, ""),
    "(N, 1) against (N,)": (lambda o, y: ((o[:, :1] - y) ** 2).mean(), lambda: numbers((256,)), "broadcast_loss"),
    "a sigmoid": (lambda o, y: F.mse_loss(o.sigmoid(), y), numbers, "unreachable_targets"),
    "ReLU": (lambda o, y: F.mse_loss(o.relu(), y), numbers, "unreachable_targets"),
    "softmax of one": (lambda o, y: F.mse_loss(o[:, :1].softmax(1), one_hot(y)[:, :1]), batches, "unreachable_targets"),
    "softmax of the batch": (lambda o, y: F.mse_loss(o.softmax(0), one_hot(y)), batches, "unreachable_targets"),
    "classes as one number": (
        lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], y.float()),
        batches,
        "targets_not_binary",
    ),
    "logits to nll_loss": (F.nll_loss, batches, "not_log_probabilities"),
    "a minus": (lambda o, y: -F.cross_entropy(o, y), batches, "negated_loss"),
    "two sigmoids": (
        lambda o, y: F.binary_cross_entropy_with_logits(o.sigmoid(), one_hot(y)),
        batches,
        "doubled_softmax",
    ),
    "one class": (lambda o, y: F.cross_entropy(o[:, :1], 0 * y), batches, "zero_loss"),
    "log of what is negative": (lambda o, y: -(o.log() * one_hot(y)).sum(1).mean(), batches, "non_finite"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_loss_is_named(tmp_path: Path, name: str) -> None:
    loss, loader, expected = FAULTS[name]
    found = {finding.name: finding for finding in fit(tmp_path, Any3(loss), loader(), max_epochs=2).findings}
    assert not expected or expected in found
    if not expected:
        assert not [finding for finding in found.values() if finding.severity == "failing"]
    if expected == "non_finite":
        assert found[expected].advice_keys[0] == "check_formula"


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda o, y: -(one_hot(y) * o.log_softmax(1)).sum(1).mean()])
def test_weights_and_random_state_are_the_same_with_it(tmp_path: Path, loss: Loss) -> None:
    class Functional(Any3):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = F.dropout(batch[0] + 0.1 * torch.randn_like(batch[0]), 0.2)
            return self.loss(self.net(F.layer_norm(x, (6,))), batch[1])

    def train(*callbacks: TrainingDiagnosis) -> list[Tensor]:
        torch.manual_seed(0)
        module = Functional(loss)
        trainer_in(tmp_path, callbacks=list(callbacks), max_epochs=2).fit(module, batches())
        return [*(parameter.detach() for parameter in module.parameters()), torch.get_rng_state()]

    diagnosis = TrainingDiagnosis()
    assert all(torch.equal(a, b) for a, b in zip(train(diagnosis), train(), strict=True))
    assert diagnosis._judge.facts.task.name == "cross_entropy"


class Teacher(nn.Module):
    """Normalizes, and has a parametrized layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - 100.0) / 50.0)  # type: ignore[no-any-return]


def test_inputs_are_what_the_first_layer_gets(tmp_path: Path) -> None:
    module = Any3(F.cross_entropy)
    module.net = Teacher()  # type: ignore[assignment]
    x, y = batches().dataset[:]
    diagnosis = fit(tmp_path, module, DataLoader(TensorDataset(x * 50 + 100, y), batch_size=16), max_epochs=1)
    assert diagnosis._judge.first.globals["input_mean"] == pytest.approx(float(x[:16].mean()), rel=1e-4)
    assert [finding for finding in diagnosis.findings if finding.severity != "note"] == []
    one_hot_inputs = DataLoader(TensorDataset(F.one_hot(y * 2, 6).float(), y), batch_size=16)
    assert fit(tmp_path, Any3(F.cross_entropy), one_hot_inputs)._judge.first.globals["input_unscaled"] == 1


def test_a_value_that_is_alike_by_chance_is_no_task(tmp_path: Path) -> None:
    def masked(o: Tensor, y: Tensor) -> Tensor:
        mask = (torch.rand_like(y) < 0.5).float()
        return (F.mse_loss(o, y, reduction="none") * mask).sum() / mask.sum()

    assert task_of(tmp_path, masked, numbers())._judge.facts.task.name == ""


def test_numbers_far_from_0_are_learning_while_the_loss_falls() -> None:
    task = Task(KINDS.index("squared"), 1.0)
    falling = history([1e4 * 0.99**step for step in range(100)], Facts(chance_loss=1.0, task=task))
    assert falling.level() == pytest.approx(0.39, abs=0.02)  # of the first
    resting = history([1e4] + [1.0] * 99, Facts(chance_loss=1.0, task=task))
    assert resting.level() == 1.0
