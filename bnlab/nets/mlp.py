"""The multi-layer perceptron: thesis, section 6.2.1 and table 6.2."""

from collections import OrderedDict
from functools import partial

from torch import nn

from bnlab.nets.blocks import HiddenStyle, NamedLayers

_HIDDEN_LAYERS = 3
_HIDDEN_UNITS = 100


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
    for i in range(1, _HIDDEN_LAYERS + 1):
        layers.append((f"fc{i}", nn.Linear(inputs, _HIDDEN_UNITS, bias=style.bias)))
        layers += style.norm_and_activation(str(i), partial(nn.BatchNorm1d, _HIDDEN_UNITS))
        if i < _HIDDEN_LAYERS:
            layers += style.dropout_layer(f"drop{i}")
        inputs = _HIDDEN_UNITS
    layers.append(("logits", nn.Linear(inputs, num_classes)))
    return nn.Sequential(OrderedDict(layers))
