"""A run of the fault matrix before it starts, and the kinds of change that are made to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from benchmarks.fault_matrix.aims import AIMS, Aim, Loss
from benchmarks.fault_matrix.nets import NETS, Net
from benchmarks.fault_matrix.unseen_nets import UNSEEN

OPTIMIZERS = ("sgd", "adam", "adamw")
BatchFault = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Setup:
    """A run before it starts; a kind changes it in place.

    `layers` are those at which a fault sits: a finding at one of them, or at a module inside, has the right place.
    """

    name: str
    spec: Net
    net: nn.Module
    lr: float
    side: int
    batch_size: int = 64
    warm_up: int = 0
    standardised: bool = True
    spare: bool = False  # a layer beside the net
    targets: Callable[[Tensor], Tensor] | None = None  # changes them all, held-out ones too
    batch_fault: BatchFault | None = None
    left_out: tuple[str, ...] = ()  # modules whose parameters no optimizer gets
    epsilon: float = 1e-8  # Adam's
    prepare: Callable[[Tensor, Tensor], None] | None = None  # given the training data, before the run
    trainer: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    loss: Loss = field(init=False)

    def __post_init__(self) -> None:
        """Take the loss of the net's aim."""
        self.loss = self.aim.loss

    @property
    def aim(self) -> Aim:
        """What the net is trained for."""
        return AIMS[self.spec.aim]


@dataclass(frozen=True)
class Kind:
    """A kind of run: how it differs from a sound one, the nets and optimizers that can, the right names for a fault."""

    inject: Callable[[Setup], None]
    names: frozenset[str]
    nets: tuple[str, ...] = (*NETS, *UNSEEN)
    optimizers: tuple[str, ...] = OPTIMIZERS
