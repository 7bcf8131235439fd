"""What a net of the fault matrix is trained for: its loss, its score at the end, and what guessing would reach."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

CLASSES = 10
Loss = Callable[[Tensor, Tensor], Tensor]


class Aim(NamedTuple):
    """A kind of task: accuracy or R² is the score, `chance` that of a guess, `sound` what a control must reach."""

    loss: Loss
    targets: Callable[[Tensor], Tensor]  # made of an image's label
    score: Callable[[Tensor, Tensor], Tensor]  # of outputs and targets
    guess: Callable[[Tensor], float]  # the loss of a net whose outputs are 0, from the targets
    chance: float
    sound: float
    outputs: int


def _upper_half(labels: Tensor) -> Tensor:
    """Labels of 5 and more against the others, (N, 1)."""
    return (labels >= CLASSES // 2).float().unsqueeze(1)


def _number(labels: Tensor) -> Tensor:
    """A label as the number that it is, (N, 1); what is a number already stays."""
    return labels.float().view(-1, 1)


def _explained(outputs: Tensor, targets: Tensor) -> Tensor:
    """R² over (N, 1) outputs and targets; not a number where outputs are not."""
    return 1 - (outputs - targets).square().mean() / targets.var(correction=0)


def _accuracy_above(limit: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: ((outputs > limit) == (targets > 0.5)).float().mean()


AIMS = {
    "classes": Aim(
        F.cross_entropy,
        lambda labels: labels,
        lambda outputs, labels: (outputs.argmax(1) == labels).float().mean(),
        lambda labels: math.log(CLASSES),
        1 / CLASSES,
        0.6,
        CLASSES,
    ),
    "logit": Aim(
        F.binary_cross_entropy_with_logits, _upper_half, _accuracy_above(0), lambda t: math.log(2), 0.5, 0.8, 1
    ),
    "probability": Aim(F.binary_cross_entropy, _upper_half, _accuracy_above(0.5), lambda t: math.log(2), 0.5, 0.8, 1),
    "value": Aim(F.mse_loss, _number, _explained, lambda t: float(t.square().mean()), 0.0, 0.6, 1),
}
