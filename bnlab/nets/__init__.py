"""The thesis's two nets, their activation functions and their initialization (sections 2.4, 2.10 and 6.2)."""

from bnlab.nets.activations import ACTIVATIONS, ActivationName, InitFamily, init_family, make_activation
from bnlab.nets.initialization import InitScheme, initialize
from bnlab.nets.thesis_nets import Architecture, NormPosition, build_net

__all__ = [
    "ACTIVATIONS",
    "ActivationName",
    "Architecture",
    "InitFamily",
    "InitScheme",
    "NormPosition",
    "build_net",
    "init_family",
    "initialize",
    "make_activation",
]
