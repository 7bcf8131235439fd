"""The nets by name, with the checks that hold for all of them."""

from typing import Literal, get_args

from torch import nn

from bnlab.nets.activations import ActivationName
from bnlab.nets.arguments import require_at_least, require_choice
from bnlab.nets.blocks import HiddenStyle, NormPosition
from bnlab.nets.cnn import build_cnn
from bnlab.nets.mlp import build_mlp

Architecture = Literal["mlp", "cnn"]


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
