"""The deep convolutional net after VGG: thesis, section 6.2.2 and table 6.3."""

from collections import OrderedDict
from functools import partial

from torch import nn

from bnlab.errors import InputError
from bnlab.nets.blocks import HiddenStyle, NamedLayers

_FILTERS = (64, 128, 256, 512, 512)
_HIDDEN_UNITS = 512
_SHRINK = 2 ** len(_FILTERS)  # each group's pooling halves the image, so 32 pixels become one


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
        layers += _group(group, channels, filters, style)
        channels = filters
    features = channels * (height // _SHRINK) * (width // _SHRINK)
    layers += _classifier(features, num_classes, style)
    return nn.Sequential(OrderedDict(layers))


def _group(group: int, in_channels: int, filters: int, style: HiddenStyle) -> NamedLayers:
    """Two convolutions and a max-pooling: (N, in_channels, H, W) → (N, filters, H//2, W//2)."""
    layers: NamedLayers = []
    channels = in_channels
    for i in (1, 2):
        convolution = nn.Conv2d(channels, filters, kernel_size=3, stride=1, padding=1, bias=style.bias)
        layers.append((f"conv{group}_{i}", convolution))
        layers += style.norm_and_activation(f"{group}_{i}", partial(nn.BatchNorm2d, filters))
        if i == 1:  # between the two convolutions of the pair, not between pairs
            layers += style.dropout_layer(f"drop{group}")
        channels = filters
    layers.append((f"pool{group}", nn.MaxPool2d(kernel_size=2, stride=2)))
    return layers


def _classifier(features: int, num_classes: int, style: HiddenStyle) -> NamedLayers:
    """Flatten and three linear layers: (N, C, H, W) with C·H·W = features → (N, num_classes)."""
    layers: NamedLayers = [("flatten", nn.Flatten())]
    inputs = features
    for i in (1, 2):
        layers.append((f"fc{i}", nn.Linear(inputs, _HIDDEN_UNITS, bias=style.bias)))
        layers += style.norm_and_activation(f"_fc{i}", partial(nn.BatchNorm1d, _HIDDEN_UNITS))
        inputs = _HIDDEN_UNITS
    layers += style.dropout_layer("drop_fc")  # section 7.2.4: before the softmax layer only
    layers.append(("logits", nn.Linear(inputs, num_classes)))
    return layers
