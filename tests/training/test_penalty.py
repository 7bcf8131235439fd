"""The L2 penalty λ‖w‖² of section 2.12.2: on weights alone, through the optimizer, logged apart from the loss."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab import Classifier
from bnlab.training.penalty import parameter_groups, penalty

STRENGTH = 0.05  # far more than the thesis's 0.0005, so that a wrong factor shows


pytestmark = pytest.mark.usefixtures("one_thread")


def small(**options: Any) -> Classifier:
    """Return an MLP with every kind of parameter: weights, a bias, γ, β and PReLU's slopes."""
    return Classifier(
        activation="prelu", batch_norm=True, weight_decay=STRENGTH, num_classes=3, image_size=(2, 2), **options
    )


def images_and_labels() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 1, 2, 2, generator=torch.Generator().manual_seed(2)), torch.arange(7) % 3


def test_two_steps_equal_the_closed_form() -> None:
    """With g' = g + 2λw for weights and g for all others: v ← 0.9 v + g'; w ← w − lr (g' + 0.9 v)."""
    images, labels = images_and_labels()
    images = images.double()
    model = small(lr=0.1).double()
    plain = copy.deepcopy(model.net)
    # spelled out, to be independent of the code's own rule
    decayed = {"fc1.weight", "fc2.weight", "fc3.weight", "logits.weight"}
    names = {name for name, _ in plain.named_parameters()}
    assert decayed < names
    assert {"logits.bias", "norm1.weight", "norm1.bias", "act1.weight"} < names

    configured: Any = model.configure_optimizers()
    velocity = {name: torch.zeros_like(w) for name, w in plain.named_parameters()}
    for _ in range(2):
        configured["optimizer"].zero_grad()
        model.training_step((images, labels), 0).backward()
        configured["optimizer"].step()
        parameters = dict(plain.named_parameters())
        gradients = torch.autograd.grad(F.cross_entropy(plain(images), labels), list(parameters.values()))
        with torch.no_grad():
            for (name, w), g in zip(parameters.items(), gradients, strict=True):
                total = g + 2 * STRENGTH * w if name in decayed else g
                velocity[name] = 0.9 * velocity[name] + total
                w -= 0.1 * (total + 0.9 * velocity[name])
    for name, w in model.net.named_parameters():
        torch.testing.assert_close(w, plain.get_parameter(name), rtol=1e-13, atol=1e-14, msg=name)


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_parameter_is_in_exactly_one_group(architecture: Any, batch_norm: bool) -> None:
    with torch.device("meta"):
        model = Classifier(architecture, "prelu", batch_norm, weight_decay=0.0005)
    groups = parameter_groups(model.net, 0.0005)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(parameter) for parameter in model.parameters()}
    assert [group["weight_decay"] for group in groups] == [0.001, 0.0]
    layers = 4 if architecture == "mlp" else 13
    assert len(groups[0]["params"]) == layers
    assert all(parameter.dim() > 1 for parameter in groups[0]["params"])  # a bias, γ, β or slope is a vector
    assert all(parameter.dim() == 1 for parameter in groups[1]["params"])


def test_a_net_of_weights_alone_has_one_group() -> None:
    """Torch's optimizers accept an empty group, and LearningRateMonitor would log it."""
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1


def test_the_penalty_in_numbers() -> None:
    net = nn.Sequential(nn.Linear(2, 1), nn.PReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), ([[3.0, 4.0]], [100.0], [50.0], [[2.0]], [10.0]), strict=True):
            parameter.copy_(torch.tensor(value))
    assert penalty(net, 0.5).item() == pytest.approx(0.5 * (9 + 16 + 4))
    assert penalty(net, 0.0).item() == 0.0
    assert not penalty(net, 0.5).requires_grad


def test_loss_and_penalty_are_logged_apart(tmp_path: Path) -> None:
    """One batch: train_loss is the cross entropy before the step, train_penalty λΣw² after it."""
    images, labels = images_and_labels()
    model = small()
    plain = copy.deepcopy(model.net)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    loader = DataLoader(TensorDataset(images, labels), 7)
    trainer.fit(model, loader, loader)
    expected = sum(
        STRENGTH * w.double().square().sum().item() for name, w in model.net.named_parameters() if w.dim() == 2
    )
    assert trainer.logged_metrics["train_penalty"].item() == pytest.approx(expected, rel=1e-6)
    loss = F.cross_entropy(plain(images), labels).item()
    assert trainer.logged_metrics["train_loss"].item() == pytest.approx(loss, rel=1e-6)
    before = sum(STRENGTH * w.double().square().sum().item() for w in plain.parameters() if w.dim() == 2)
    assert abs(before - expected) > 1e-3 * expected  # so the test would see the penalty before the step
