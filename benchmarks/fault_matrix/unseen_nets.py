"""Nets of the fault matrix that no threshold was chosen on: other layers, activations and norms than those of `nets`.

Their learning rates are the smallest whose controls (seed 100, mean of both data sets) come within a point of the best
accuracy of 0.01, 0.03, 0.1, 0.3 (SGD) and 1e-3, 3e-3, 1e-2 (Adam); the diagnosis had no part in that.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from benchmarks.fault_matrix.aims import CLASSES
from benchmarks.fault_matrix.nets import Net, learning_rates


def lenet(side: int) -> nn.Module:
    """Convolutions, average pooling and tanh (LeCun et al. 1998), padded, since the images are small."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 6, 5, padding=2),
            act1=nn.Tanh(),
            pool1=nn.AvgPool2d(2),
            conv2=nn.Conv2d(6, 16, 5, padding=2),
            act2=nn.Tanh(),
            pool2=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * (side // 4) ** 2, 120),
            act3=nn.Tanh(),
            fc2=nn.Linear(120, 84),
            act4=nn.Tanh(),
            logits=nn.Linear(84, CLASSES),
        )
    )


class RowGRU(nn.Module):
    """An image's rows through a GRU (Cho et al. 2014); its last output is projected and normed before the logits."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(side, 48, batch_first=True)
        self.project = nn.Linear(48, 32)
        self.norm = nn.LayerNorm(32)
        self.logits = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, classes)."""
        y: Tensor = self.logits(self.norm(self.project(self.rnn(x.squeeze(1))[0][:, -1])))
        return y


class MixerBlock(nn.Module):
    """Two-layer nets over the tokens and over the channels, each after a layer norm and beside a skip connection."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.tokens1 = nn.Linear(tokens, 2 * tokens)
        self.act1 = nn.GELU()
        self.tokens2 = nn.Linear(2 * tokens, tokens)
        self.norm2 = nn.LayerNorm(width)
        self.channels1 = nn.Linear(width, 2 * width)
        self.act2 = nn.GELU()
        self.channels2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, width) → the same."""
        x = x + self.tokens2(self.act1(self.tokens1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        y: Tensor = x + self.channels2(self.act2(self.channels1(self.norm2(x))))
        return y


class Mixer(nn.Module):
    """Sixteen patches as tokens, two blocks, the mean over the tokens, and logits (Tolstikhin et al. 2021)."""

    def __init__(self, side: int, width: int = 24) -> None:
        super().__init__()
        patch = side // 4
        self.embed = nn.Conv2d(1, width, patch, stride=patch)
        self.blocks = nn.Sequential(MixerBlock(16, width), MixerBlock(16, width))
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, classes)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        y: Tensor = self.logits(self.norm(self.blocks(tokens)).mean(1))
        return y


class PreactivationBlock(nn.Module):
    """Batch norm and SiLU before each of two 3×3 convolutions; nothing on the skip connection (He et al. 2016b)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.SiLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.SiLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, outputs, H / stride, W / stride)."""
        inner = self.conv2(self.act2(self.norm2(self.conv1(self.act1(self.norm1(x))))))
        y: Tensor = inner + self.skip(x)
        return y


class PreactivationResNet(nn.Module):
    """A bare stem, three blocks, a last norm and SiLU, the mean over the image, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            PreactivationBlock(8, 8, 2), PreactivationBlock(8, 16, 2), PreactivationBlock(16, 32, 2)
        )
        self.norm = nn.BatchNorm2d(32)
        self.act = nn.SiLU()
        self.logits = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, classes)."""
        y: Tensor = self.logits(self.act(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))
        return y


# None has a bias before a rectifier: tanh, GELU and SiLU have a slope everywhere.
UNSEEN: dict[str, Net] = {
    "lenet": Net(lenet, "conv2", "act2", None, ("act2", ("conv1", "conv2")), learning_rates(0.1, 0.01)),
    "gru": Net(RowGRU, "project", "norm", None, ("project", ("rnn", "project")), learning_rates(0.1, 3e-3)),
    "mixer": Net(
        Mixer,
        "blocks.0.channels1",
        "blocks.0.act2",
        None,
        ("blocks.0", ("embed", "blocks.0")),
        learning_rates(0.03, 3e-3),
    ),
    "preact_resnet": Net(
        lambda side: PreactivationResNet(),
        "blocks.1.conv1",
        "blocks.1.act2",
        None,
        ("blocks.1", ("stem", "blocks.0", "blocks.1")),
        learning_rates(0.01),
    ),
}
