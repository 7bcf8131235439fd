"""The block that the thesis's two nets share: a hidden layer, then batch norm, activation and dropout."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torch import nn

from bnlab.errors import InputError
from bnlab.nets.activations import ActivationName, make_activation
from bnlab.nets.arguments import require_choice

NormPosition = Literal["before", "after"]
NamedLayers: TypeAlias = list[tuple[str, nn.Module]]


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

    def norm_and_activation(self, suffix: str, make_norm: Callable[[], nn.Module]) -> NamedLayers:
        """Return `act<suffix>`, with `norm<suffix>` on the side of it that the style asks for."""
        activation = (f"act{suffix}", make_activation(self.activation))
        if not self.batch_norm:
            return [activation]
        norm = (f"norm{suffix}", make_norm())
        return [norm, activation] if self.norm_position == "before" else [activation, norm]

    def dropout_layer(self, name: str) -> NamedLayers:
        """Return one dropout layer called `name`, or nothing where the style has no dropout.

        Single elements are dropped, in feature maps too: "half the activations" (section 7.2.4), not whole channels.
        """
        return [(name, nn.Dropout(self.dropout))] if self.dropout > 0 else []
