"""Routines of torch-uncertainty: a Bayesian net, a packed ensemble, a batch ensemble, a distribution as the output."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch_uncertainty.layers import BatchLinear, BayesLinear, PackedLinear
from torch_uncertainty.losses import DistributionNLLLoss, ELBOLoss
from torch_uncertainty.methods import batch_ensemble, mc_dropout
from torch_uncertainty.models.mlp import mlp
from torch_uncertainty.routines import ClassificationRoutine, RegressionRoutine

from benchmarks.public_libraries.libraries.training import batches, trainer

DISTRIBUTION = "torch-uncertainty"
CLASSES = 3


def clusters() -> tuple[Tensor, Tensor]:
    """Points (512, 16) of three classes, and their classes."""
    labels = torch.randint(0, CLASSES, (512,))
    points = torch.randn(512, 16)
    points[torch.arange(512), labels] += 2.5
    return points, labels


def line() -> tuple[Tensor, Tensor]:
    """Points (512, 8) and what they sum up to with noise, (512,): a routine adds the axis."""
    points = torch.randn(512, 8)
    return points, points.sum(1) / 3 + 0.2 * torch.randn(512)


def _classify(net: nn.Module, loss: nn.Module, ensemble: bool = False) -> None:
    routine = ClassificationRoutine(net, CLASSES, loss, is_ensemble=ensemble, optim_recipe=_adam(net))
    trainer(200).fit(routine, batches(*clusters()))


def _adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=3e-3)


class Packed(nn.Module):
    """Four nets of one, as its routine wants them."""

    def __init__(self) -> None:
        super().__init__()
        layer = partial(PackedLinear, alpha=2, num_estimators=4)
        self.one, self.two = layer(16, 32, first=True), layer(32, CLASSES, last=True)

    def forward(self, points: Tensor) -> Tensor:
        """Points (n, 16) → logits (4 n, 3)."""
        logits: Tensor = self.two(self.one(points).relu())
        return logits


def packed() -> None:
    """The targets are repeated for each net."""
    from torch_uncertainty.transforms import RepeatTarget

    net = Packed()
    routine = ClassificationRoutine(
        net,
        CLASSES,
        nn.CrossEntropyLoss(),
        is_ensemble=True,
        format_batch_fn=RepeatTarget(4),
        optim_recipe=_adam(net),
    )
    trainer(200).fit(routine, batches(*clusters()))


def bayesian() -> None:
    """The evidence's lower bound, a loss of shape (1,)."""
    net = nn.Sequential(BayesLinear(16, 32), nn.ReLU(), BayesLinear(32, CLASSES))
    _classify(net, ELBOLoss(net, nn.CrossEntropyLoss(), kl_weight=1 / 512, num_samples=3))


def batched() -> None:
    """Four members that share a matrix."""
    from torch_uncertainty.transforms import RepeatTarget

    layers = (BatchLinear(16, 32, num_estimators=4), nn.ReLU(), BatchLinear(32, CLASSES, num_estimators=4))
    net = batch_ensemble(nn.Sequential(*layers), num_estimators=4, repeat_training_inputs=True)
    routine = ClassificationRoutine(
        net,
        CLASSES,
        nn.CrossEntropyLoss(),
        is_ensemble=True,
        format_batch_fn=RepeatTarget(4),
        optim_recipe=_adam(net),
    )
    trainer(200).fit(routine, batches(*clusters()))


def dropout() -> None:
    """Dropout that stays on."""
    _classify(mc_dropout(mlp(16, CLASSES, [32, 32], dropout_rate=0.2), num_estimators=8), nn.CrossEntropyLoss())


def distribution() -> None:
    """The likelihood of a normal distribution."""
    net = mlp(8, 1, [32, 32], dist_family="normal")
    routine = RegressionRoutine(net, 1, DistributionNLLLoss(), dist_family="normal", optim_recipe=_adam(net))
    trainer(200, gradient_clip_val=1.0).fit(routine, batches(*line()))


FITS: dict[str, Callable[[], None]] = {
    "Bayesian, ELBO": bayesian,
    "packed ensemble": packed,
    "batch ensemble": batched,
    "MC dropout": dropout,
    "normal distribution": distribution,
}
