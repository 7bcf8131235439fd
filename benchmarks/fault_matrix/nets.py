"""The nets of the fault matrix: small enough for a step of a few milliseconds, of the kinds that people train."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.fault_matrix.aims import CLASSES
from bnlab.nets import ActivationName, build_net, initialize


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with batch norm around a skip connection (He et al. 2016, without pre-activation)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, outputs, H / stride, W / stride)."""
        inner = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        y: Tensor = self.act2(inner + self.skip(x))
        return y


class ResNet(nn.Module):
    """A stem, three residual blocks, the mean over the image, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.blocks = nn.Sequential(ResidualBlock(8, 8, 2), ResidualBlock(8, 16, 2), ResidualBlock(16, 32, 2))
        self.logits = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, classes)."""
        y: Tensor = self.logits(self.blocks(self.act(self.norm(self.stem(x)))).mean((2, 3)))
        return y


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer net, each after a layer norm and beside a skip connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, width) → the same."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.out(mixed)
        y: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return y


class Transformer(nn.Module):
    """Patches as tokens, two blocks, the mean over the tokens, and logits."""

    def __init__(self, side: int, width: int = 32) -> None:
        super().__init__()
        self.patch = side // 4  # 16 tokens
        self.embed = nn.Linear(self.patch**2, width)
        self.positions = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(TransformerBlock(width, 4), TransformerBlock(width, 4))
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, classes)."""
        tokens = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        y: Tensor = self.logits(self.norm(self.blocks(self.embed(tokens) + self.positions)).mean(1))
        return y


class RowLSTM(nn.Module):
    """An image's rows as a sequence: embedded, through an LSTM, whose last output gives the logits."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.embed = nn.Linear(side, 32)
        self.rnn = nn.LSTM(32, 48, batch_first=True)
        self.logits = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, classes)."""
        y: Tensor = self.logits(self.rnn(self.embed(x.squeeze(1)))[0][:, -1])
        return y


def mlp(side: int, batch_norm: bool, activation: ActivationName = "relu", outputs: int = CLASSES) -> nn.Sequential:
    """The thesis's MLP."""
    net = build_net("mlp", 1, (side, side), CLASSES, activation=activation, batch_norm=batch_norm)
    if outputs != CLASSES:
        net.set_submodule("logits", nn.Linear(100, outputs))
    initialize(net, "auto", activation)
    return net


def cnn(side: int, batch_norm: bool, outputs: int = CLASSES) -> nn.Sequential:
    """The thesis's CNN with two of its five groups, and few filters."""
    layers: list[tuple[str, nn.Module]] = []
    channels = 1
    for group, filters in ((1, 8), (2, 16)):
        for i in (1, 2):
            layers.append((f"conv{group}_{i}", nn.Conv2d(channels, filters, 3, padding=1, bias=not batch_norm)))
            layers += [(f"norm{group}_{i}", nn.BatchNorm2d(filters))] if batch_norm else []
            layers.append((f"act{group}_{i}", nn.ReLU()))
            channels = filters
        layers.append((f"pool{group}", nn.MaxPool2d(2)))
    layers += [("flatten", nn.Flatten()), ("fc1", nn.Linear(16 * (side // 4) ** 2, 64, bias=not batch_norm))]
    layers += [("norm_fc1", nn.BatchNorm1d(64))] if batch_norm else []
    layers += [("act_fc1", nn.ReLU()), ("logits", nn.Linear(64, outputs))]
    net = nn.Sequential(OrderedDict(layers))
    initialize(net, "auto", "relu")
    return net


def deep(net: str, side: int, activation: type[nn.Module], gain: float) -> nn.Module:
    """A net of 12 layers (`net` "cnn": convolutions) with weights of N(0, gain²/n_in)."""
    layers: list[tuple[str, nn.Module]] = [] if net == "cnn" else [("flatten", nn.Flatten())]
    inputs = 1 if net == "cnn" else side**2
    width = 8 if net == "cnn" else 64
    for i in range(1, 13):
        layer = nn.Conv2d(inputs, width, 3, padding=1) if net == "cnn" else nn.Linear(inputs, width)
        name = f"conv{i}" if net == "cnn" else f"fc{i}"
        layers += [(name, layer), (f"act{i}", activation())]
        inputs = width
    if net == "cnn":
        layers += [("pool", nn.AdaptiveAvgPool2d(2)), ("flatten", nn.Flatten())]
        inputs = 4 * width
    layers.append(("logits", nn.Linear(inputs, CLASSES)))
    stack = nn.Sequential(OrderedDict(layers))
    for module in stack.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=gain / module.weight[0].numel() ** 0.5)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return stack


class Net(NamedTuple):
    """A kind of net: how it is built for images of side × side, its places for faults, its learning rates."""

    build: Callable[[int], nn.Module]
    middle: str  # a layer with weights
    after: str  # what shows its outputs: the activation that follows, or the next layer
    bias: str | None  # a module whose bias can silence the rectifier `after` it
    cut: tuple[str, tuple[str, ...]]  # where the graph can be cut, and the layers then without gradients
    lr: dict[str, float]
    aim: str = "classes"
    data: tuple[str, ...] = ()  # what it can learn from, if not from all images

    @property
    def batch_norm(self) -> bool:
        """Whether it has batch-norm layers."""
        return any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in self.build(8).modules())


def learning_rates(sgd: float, adam: float = 1e-3) -> dict[str, float]:
    """Those of the three optimizers."""
    return {"sgd": sgd, "adam": adam, "adamw": adam}


_CUT_MLP = ("act2", ("fc1", "fc2"))
_CUT_CNN = ("act2_1", ("conv1_1", "conv1_2", "conv2_1"))
NETS: dict[str, Net] = {
    "mlp": Net(lambda side: mlp(side, False), "fc2", "act2", "fc2", _CUT_MLP, learning_rates(0.01)),
    "mlp_bn": Net(lambda side: mlp(side, True), "fc2", "act2", "norm2", _CUT_MLP, learning_rates(0.01)),
    "cnn": Net(lambda side: cnn(side, False), "conv2_1", "act2_1", "conv2_1", _CUT_CNN, learning_rates(0.01)),
    "cnn_bn": Net(lambda side: cnn(side, True), "conv2_1", "act2_1", "norm2_1", _CUT_CNN, learning_rates(0.01)),
    "lstm": Net(RowLSTM, "embed", "rnn", None, ("embed", ("embed",)), learning_rates(0.1, 5e-3)),
    "resnet": Net(
        lambda side: ResNet(),
        "blocks.1.conv1",
        "blocks.1.act1",
        None,
        ("blocks.1", ("stem", "blocks.0", "blocks.1")),
        learning_rates(0.03, 3e-3),
    ),
    "transformer": Net(
        Transformer,
        "blocks.0.fc1",
        "blocks.0.act",
        None,
        ("blocks.0", ("embed", "positions", "blocks.0")),
        learning_rates(0.03),
    ),
}
SLOW: dict[str, Net] = {
    "mlp_sigmoid": NETS["mlp"]._replace(build=lambda side: mlp(side, False, "sigmoid")),
    "cnn_low_lr": NETS["cnn"]._replace(lr={"sgd": 1e-3, "adam": 1e-4, "adamw": 1e-4}),
}
