"""Weight initialization: thesis, section 2.4, equations 2.10 to 2.12, and the wrong scales of section 7.1.3.

Kaiming is https://arxiv.org/abs/1502.01852; Xavier is https://proceedings.mlr.press/v9/glorot10a.html.
"""

import math
from typing import Literal, get_args

from torch import nn

from bnlab.errors import InputError
from bnlab.nets.activations import ActivationName, init_family, require_choice

InitScheme = Literal["auto", "kaiming", "xavier", "normal"]


def initialize(net: nn.Module, scheme: InitScheme, activation: ActivationName, std: float | None = None) -> None:
    """Draw the weights of every linear and 2-d convolution layer of `net` anew, in place, the last layer included.

    The draws come from torch's global generator. Weights are normal with mean zero and variance

    - `kaiming`: 2/n_in, whatever the activation (equation 2.12);
    - `xavier`: 2/(n_in + n_out) (equation 2.11);
    - `normal`: std² (equation 2.10), and only this scheme takes `std`;
    - `auto`: Kaiming or Xavier, whichever suits `activation`.

    For a convolution n_in and n_out count the kernel's area: in_channels·kh·kw and out_channels·kh·kw. Biases become
    zero. Batch norm starts at γ = 1, β = 0 with empty running statistics. Other modules (PReLU) keep what they have.

    An unknown scheme or activation, `normal` without `std`, `std` with another scheme, or a `std` that is not a
    positive finite number raises InputError.
    """
    require_choice("init", scheme, get_args(InitScheme))
    _check_std(scheme, std)
    chosen = init_family(activation) if scheme == "auto" else scheme
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            _draw_weight(module, chosen, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()  # γ, β and the running statistics


def _draw_weight(layer: nn.Linear | nn.Conv2d, scheme: InitScheme, std: float | None) -> None:
    if scheme == "normal":
        assert std is not None  # _check_std saw to it
        nn.init.normal_(layer.weight, std=std)
    elif scheme == "xavier":
        nn.init.xavier_normal_(layer.weight)
    else:
        # "relu" means the gain √2; a leaky slope would change it, and the thesis does not.
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")


def _check_std(scheme: InitScheme, std: float | None) -> None:
    if scheme == "normal" and std is None:
        raise InputError(
            "init 'normal' needs init_std, the weights' standard deviation, and none was given. "
            "Set init_std (the thesis: 1.0 or 0.0001), or choose init auto, kaiming or xavier."
        )
    if scheme != "normal" and std is not None:
        raise InputError(
            f"init_std is {std}, but init {scheme!r} computes its own standard deviations. "
            f"Leave init_std out, or set init to normal."
        )
    if std is not None and not (math.isfinite(std) and std > 0):
        raise InputError(f"init_std is {std}, but must be a finite number above 0. Set it to, say, 0.01.")
