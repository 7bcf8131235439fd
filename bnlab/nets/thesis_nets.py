"""The thesis's two nets, tables 6.2 and 6.3, and the block that they share."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torch import nn

from bnlab.errors import InputError
from bnlab.nets.activations import ActivationName, make_activation, require_at_least, require_choice

Architecture = Literal["mlp", "cnn"]
NormPosition = Literal["before", "after"]
NamedLayers: TypeAlias = list[tuple[str, nn.Module]]

_MLP_LAYERS, _MLP_UNITS = 3, 100
_FILTERS = (64, 128, 256, 512, 512)
_SHRINK = 2 ** len(_FILTERS)  # each group's pooling halves the image, so 32 pixels become one
_CNN_UNITS = 512


@dataclass(frozen=True)
class HiddenStyle:
    """What follows every hidden linear or convolution layer of a net.

    `norm_position` is batch norm's place relative to the activation, and matters only with `batch_norm`.
    `dropout` is the probability of *dropping* a unit; the thesis's p (section 2.12.3) is that of keeping it.
    An unknown `norm_position` or a `dropout` outside [0, 1) raises InputError.
    """

    activation: ActivationName
    batch_norm: bool
    norm_position: NormPosition
    dropout: float

    def __post_init__(self) -> None:
        """Check what torch would not, or would only in its own words."""
        require_choice("norm_position", self.norm_position, get_args(NormPosition))
        if not 0 <= self.dropout < 1:  # written so that NaN fails too
            raise InputError(
                f"dropout is {self.dropout}, but must be at least 0 and less than 1: it is the probability of dropping "
                f"a unit. Set 0.5 for the thesis's experiment, or 0 for none."
            )

    @property
    def bias(self) -> bool:
        """Whether a hidden layer needs its bias: not where batch norm, which has β, comes right after it."""
        return not (self.batch_norm and self.norm_position == "before")

    def norm_and_activation(self, suffix: str, norm: nn.Module) -> NamedLayers:
        """Return `act<suffix>`, with `norm<suffix>` on the side of it that the style asks for."""
        activation, normed = (f"act{suffix}", make_activation(self.activation)), (f"norm{suffix}", norm)
        if not self.batch_norm:
            return [activation]
        return [normed, activation] if self.norm_position == "before" else [activation, normed]

    def dropout_layer(self, name: str) -> NamedLayers:
        """Return one dropout layer called `name`, or nothing where the style has no dropout.

        Single elements are dropped, in feature maps too: "half the activations" (section 7.2.4), not whole channels.
        """
        return [(name, nn.Dropout(self.dropout))] if self.dropout > 0 else []


def build_mlp(in_channels: int, image_size: tuple[int, int], num_classes: int, style: HiddenStyle) -> nn.Sequential:
    """Return the net (N, in_channels, H, W) → logits (N, num_classes); `image_size` is (H, W).

    Children: `flatten`, then for i = 1, 2, 3 `fc<i>` (100 units), `norm<i>` and `act<i>` in the order that
    `norm_position` says, and `drop<i>` but after the last one, and at last `logits`. Without batch norm there is no
    `norm<i>`, with dropout 0 no `drop<i>`. The softmax is part of the loss. Weights are torch's own until `initialize`
    is called.

    Where units are dropped the thesis does not say. Its accuracies are those of dropout between the hidden layers, as
    it stands between the convolutions of the CNN (section 6.2.2); with one more before the softmax they are missed.
    """
    height, width = image_size
    inputs = in_channels * height * width
    layers: NamedLayers = [("flatten", nn.Flatten())]
    for i in range(1, _MLP_LAYERS + 1):
        layers.append((f"fc{i}", nn.Linear(inputs, _MLP_UNITS, bias=style.bias)))
        layers += style.norm_and_activation(str(i), nn.BatchNorm1d(_MLP_UNITS))
        if i < _MLP_LAYERS:
            layers += style.dropout_layer(f"drop{i}")
        inputs = _MLP_UNITS
    layers.append(("logits", nn.Linear(inputs, num_classes)))
    return nn.Sequential(OrderedDict(layers))


def build_cnn(in_channels: int, image_size: tuple[int, int], num_classes: int, style: HiddenStyle) -> nn.Sequential:
    """Return the net (N, in_channels, H, W) → logits (N, num_classes); `image_size` is (H, W).

    Children, for g = 1 to 5: `conv<g>_1`, `norm<g>_1`, `act<g>_1`, `drop<g>`, `conv<g>_2`, `norm<g>_2`, `act<g>_2`,
    `pool<g>`; then `flatten`, `fc1`, `norm_fc1`, `act_fc1`, `fc2`, `norm_fc2`, `act_fc2`, `drop_fc`, `logits`. With
    norm_position "after" each norm follows its act; without batch norm there are no norms, with dropout 0 no drops.
    Images of 32×32 reach `fc1` as 512 numbers, larger ones as 512·(H//32)·(W//32). The softmax is part of the loss.
    Weights are torch's own until `initialize` is called.

    An image below 32 pixels on a side raises InputError.
    """
    height, width = image_size
    if min(image_size) < _SHRINK:
        raise InputError(
            f"The cnn cannot take images of {height}x{width} pixels: it halves them {len(_FILTERS)} times, so each "
            f"side must be {_SHRINK} or more. Enlarge or pad the images to {_SHRINK}x{_SHRINK}, or use the mlp "
            f"(architecture: mlp)."
        )
    layers: NamedLayers = []
    channels = in_channels
    for group, filters in enumerate(_FILTERS, start=1):
        for i in (1, 2):
            convolution = nn.Conv2d(channels, filters, kernel_size=3, stride=1, padding=1, bias=style.bias)
            layers.append((f"conv{group}_{i}", convolution))
            layers += style.norm_and_activation(f"{group}_{i}", nn.BatchNorm2d(filters))
            if i == 1:  # between the two convolutions of the pair, not between pairs
                layers += style.dropout_layer(f"drop{group}")
            channels = filters
        layers.append((f"pool{group}", nn.MaxPool2d(kernel_size=2, stride=2)))
    layers.append(("flatten", nn.Flatten()))
    inputs = channels * (height // _SHRINK) * (width // _SHRINK)
    for i in (1, 2):
        layers.append((f"fc{i}", nn.Linear(inputs, _CNN_UNITS, bias=style.bias)))
        layers += style.norm_and_activation(f"_fc{i}", nn.BatchNorm1d(_CNN_UNITS))
        inputs = _CNN_UNITS
    layers += style.dropout_layer("drop_fc")  # section 7.2.4: before the softmax layer only
    layers.append(("logits", nn.Linear(inputs, num_classes)))
    return nn.Sequential(OrderedDict(layers))


def build_net(
    architecture: Architecture,
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    activation: ActivationName = "relu",
    batch_norm: bool = False,
    norm_position: NormPosition = "before",
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return the thesis's "mlp" (table 6.2) or "cnn" (table 6.3): (N, in_channels, H, W) → logits (N, num_classes).

    `image_size` is (H, W), `dropout` the probability of dropping a unit. The defaults are the thesis's baseline.
    See `build_mlp` and `build_cnn` for the children's names, and `initialize` for the weights.

    Raises InputError for an unknown architecture, activation or norm_position, fewer than 2 classes, fewer than
    1 channel or pixel, a dropout outside [0, 1), and for the cnn an image below 32 pixels on a side.
    """
    require_choice("architecture", architecture, get_args(Architecture))
    require_at_least("num_classes", num_classes, 2)
    require_at_least("in_channels", in_channels, 1)
    require_at_least("the least side of image_size", min(image_size), 1)
    build = build_mlp if architecture == "mlp" else build_cnn
    return build(in_channels, image_size, num_classes, HiddenStyle(activation, batch_norm, norm_position, dropout))
