"""Nets of the fault matrix that are trained for one number, that begin with zeros on purpose, or that are wide.

Their learning rates were chosen by the scores of controls alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.fault_matrix.aims import CLASSES
from benchmarks.fault_matrix.nets import NETS, Net, cnn, learning_rates, mlp
from bnlab.nets import initialize


class ReZeroBlock(nn.Module):
    """x + α·f(x) with α = 0 at first (Bachlechner et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))
        self.fc1 = nn.Linear(width, width)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) → the same."""
        y: Tensor = x + self.alpha * self.fc2(self.act(self.fc1(x)))
        return y


def rezero(side: int, width: int = 64) -> nn.Sequential:
    """Six such blocks between two linear layers."""
    blocks = nn.Sequential(*(ReZeroBlock(width) for _ in range(6)))
    layers = {"flatten": nn.Flatten(), "embed": nn.Linear(side**2, width), "blocks": blocks}
    return nn.Sequential(OrderedDict(layers, logits=nn.Linear(width, CLASSES)))


class ModulatedBlock(nn.Module):
    """A two-layer net over the channels whose shift, scale and gate come from a condition, and are 0 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, tokens, width) and (N, 1, width) → (N, tokens, width)."""
        shift, scale, gate = self.modulation(condition).chunk(3, -1)
        y: Tensor = x + gate * self.fc2(self.act(self.fc1(self.norm(x) * (1 + scale) + shift)))
        return y


class AdaLNZero(nn.Module):
    """Patches as tokens, blocks conditioned on the image's mean token, and a head of zeros (Peebles and Xie 2023)."""

    def __init__(self, side: int, width: int = 32) -> None:
        super().__init__()
        self.patch = side // 4  # 16 tokens
        self.embed = nn.Linear(self.patch**2, width)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        self.condition = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList([ModulatedBlock(width) for _ in range(3)])
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(16 * width, CLASSES)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, classes)."""
        tokens = self.embed(F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)) + self.positions
        condition = self.condition(tokens.mean(1, keepdim=True))
        for block in self.blocks:
            tokens = block(tokens, condition)
        y: Tensor = self.logits(self.norm(tokens).flatten(1))
        return y


def wide_mlp(side: int, width: int = 1024) -> nn.Sequential:
    """One hidden layer that learns at small learning rates, since many weights move together."""
    layers = {"flatten": nn.Flatten(), "fc1": nn.Linear(side**2, width), "act1": nn.ReLU()}
    net = nn.Sequential(OrderedDict(layers, logits=nn.Linear(width, CLASSES)))
    initialize(net, "auto", "relu")
    return net


def _with_sigmoid(net: nn.Sequential) -> nn.Sequential:
    net.add_module("out", nn.Sigmoid())
    return net


def _one_output(like: str, build: Callable[[int], nn.Module], aim: str, lr: dict[str, float], *data: str) -> Net:
    return NETS[like]._replace(build=build, aim=aim, lr=lr, data=data)


_TABLE = ("friedman", "digits")
_FAST = learning_rates(0.03, 3e-3)
VALUES: dict[str, Net] = {  # numbers far from 0: 14 ± 5 of the table, 4.5 ± 2.9 of images
    "mlp_value": _one_output(
        "mlp", lambda side: mlp(side, False, outputs=1), "value", learning_rates(1e-3, 1e-2), *_TABLE
    ),
    "mlp_bn_value": _one_output(
        "mlp_bn", lambda side: mlp(side, True, outputs=1), "value", learning_rates(3e-3, 1e-2), *_TABLE
    ),
    "cnn_value": _one_output("cnn", lambda side: cnn(side, False, 1), "value", learning_rates(3e-4, 3e-3)),
}
BINARY: dict[str, Net] = {
    "mlp_logit": _one_output("mlp", lambda side: mlp(side, False, outputs=1), "logit", _FAST),
    "cnn_bn_logit": _one_output("cnn_bn", lambda side: cnn(side, True, 1), "logit", learning_rates(0.03)),
    "mlp_probability": _one_output(
        "mlp", lambda side: _with_sigmoid(mlp(side, False, outputs=1)), "probability", _FAST
    ),
}
ZEROS: dict[str, Net] = {
    "rezero": Net(rezero, "blocks.1.fc1", "blocks.1.act", None, ("embed", ("embed",)), learning_rates(0.03, 3e-3)),
    "adaln_zero": Net(AdaLNZero, "blocks.1.fc1", "blocks.1.act", None, ("embed", ("embed",)), learning_rates(0.01)),
}
WIDE: dict[str, Net] = {
    "mlp_wide": Net(wide_mlp, "fc1", "act1", "fc1", ("act1", ("fc1",)), learning_rates(6e-5, 3e-5)),
}
MORE = VALUES | BINARY | ZEROS | WIDE
