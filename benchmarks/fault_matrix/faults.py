"""The faults of the matrix: what each does to a sound run, and what a diagnosis may call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.fault_matrix.nets import NETS, Net, deep
from benchmarks.fault_matrix.unseen_nets import UNSEEN

ALL_NETS = NETS | UNSEEN
BatchFault = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Setup:
    """A run before it starts; a fault changes it in place.

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
    softmax: bool = False
    spare: bool = False  # a layer beside the net
    batch_fault: BatchFault | None = None
    left_out: tuple[str, ...] = ()  # modules whose parameters no optimizer gets
    trainer: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fault:
    """A fault: how it gets into a run, the names that are right for it, and the nets that can have it."""

    inject: Callable[[Setup], None]
    names: frozenset[str]
    nets: tuple[str, ...] = tuple(ALL_NETS)


def learning_rate(factor: float) -> Callable[[Setup], None]:
    """Multiply the learning rate."""

    def inject(run: Setup) -> None:
        run.lr *= factor

    return inject


def weights(draw: Callable[[Tensor], Any]) -> Callable[[Setup], None]:
    """Set every weight of two or more dimensions; biases and norms' scales keep what they have."""

    def inject(run: Setup) -> None:
        for parameter in run.net.parameters():
            if parameter.ndim > 1:
                draw(parameter.data)

    return inject


def deep_net(activation: type[nn.Module], gain: float) -> Callable[[Setup], None]:
    """A net of 12 layers in place of the run's own."""

    def inject(run: Setup) -> None:
        run.net = deep(run.name, run.side, activation, gain)

    return inject


def dead_bias(run: Setup) -> None:
    """A bias of -5 before a rectifier, in a net whose inputs to it have a deviation near 1."""
    assert run.spec.bias is not None
    bias = run.net.get_submodule(run.spec.bias).bias
    assert isinstance(bias, Tensor)
    nn.init.constant_(bias, -5.0)
    run.layers = (run.spec.middle, run.spec.bias, run.spec.after)


def one_layer(factor: float) -> Callable[[Setup], None]:
    """The weights of one layer in the middle at another scale than its neighbours'."""

    def inject(run: Setup) -> None:
        run.net.get_submodule(run.spec.middle).get_parameter("weight").data.mul_(factor)
        run.layers = (run.spec.middle, run.spec.after)

    return inject


def frozen(run: Setup) -> None:
    """`requires_grad` off in one layer."""
    run.net.get_submodule(run.spec.middle).requires_grad_(False)
    run.layers = (run.spec.middle,)


def left_out(run: Setup) -> None:
    """A layer that is trainable, but that no optimizer was given."""
    run.left_out = (run.spec.middle,)
    run.layers = (run.spec.middle,)


def unused_branch(run: Setup) -> None:
    """A layer that no forward pass goes through."""
    run.spare = True
    run.layers = ("spare",)


def detached(run: Setup) -> None:
    """The graph cut behind a layer in the middle, as by `.detach()` in `forward`."""
    place, run.layers = run.spec.cut
    run.net.get_submodule(place).register_forward_hook(lambda module, args, output: output.detach())


def unstandardised(run: Setup) -> None:
    """Grey values 0 … 255 as they are in the file."""
    run.standardised = False


def shuffled_labels(run: Setup) -> None:
    """Labels of a batch in another order than its images, as from two loaders that each shuffle."""
    run.batch_fault = lambda step, images, labels: (images, labels[torch.randperm(len(labels))])


def nan_batch(run: Setup) -> None:
    """One NaN in one image of step 7."""

    def fault(step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if step == 7:
            images = images.clone()
            images[3, 0, 4, 4] = torch.nan
        return images, labels

    run.batch_fault = fault


def doubled_softmax(run: Setup) -> None:
    """Probabilities given to a loss that takes logits."""
    run.softmax = True


def batch_norms(change: Callable[[nn.Module], Any]) -> Callable[[Setup], None]:
    """Change every batch-norm layer."""

    def inject(run: Setup) -> None:
        for module in run.net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                change(module)

    return inject


def batch_of_two(run: Setup) -> None:
    """Two images a batch."""
    run.batch_size = 2


def tight_clipping(run: Setup) -> None:
    """The gradient's norm cut to 1e-4."""
    run.trainer["gradient_clip_val"] = 1e-4


def overflow(run: Setup) -> None:
    """Half precision with a loss scale that starts far too high, and grows after each good step."""
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1)
    run.trainer["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]


_GROWS = frozenset({"exploding", "non_finite", "learning_rate_too_high"})
_DEPTH = frozenset({"vanishing", "vanishing_with_depth", "collapsed_output", "poor_initialisation"})
_NORM_NETS = tuple(name for name, net in ALL_NETS.items() if net.batch_norm)

FAULTS: dict[str, Fault] = {
    "lr x10": Fault(learning_rate(10), _GROWS | {"dead_units", "saturated"}),
    "lr x100": Fault(learning_rate(100), _GROWS | {"dead_units", "saturated"}),
    "lr /1000": Fault(learning_rate(1e-3), frozenset({"learning_rate_too_low"})),
    "init N(0,1)": Fault(
        weights(lambda weight: weight.normal_()), _GROWS | {"poor_initialisation", "dead_units", "saturated"}
    ),
    "init N(0,1e-4^2)": Fault(weights(lambda weight: weight.normal_(std=1e-4)), _DEPTH),
    "init all equal": Fault(weights(lambda weight: weight.fill_(0.05)), frozenset({"poor_initialisation"})),
    "init all zero": Fault(
        weights(lambda weight: weight.zero_()), frozenset({"poor_initialisation", "no_gradient", "collapsed_output"})
    ),
    "deep sigmoid": Fault(deep_net(nn.Sigmoid, 1.0), _DEPTH | {"saturated"}, ("mlp", "cnn")),
    "deep tanh, gain 0.2": Fault(deep_net(nn.Tanh, 0.2), _DEPTH, ("mlp", "cnn")),
    "deep tanh, gain 10": Fault(deep_net(nn.Tanh, 10.0), _GROWS | {"saturated", "poor_initialisation"}, ("mlp", "cnn")),
    "dead bias": Fault(
        dead_bias,
        frozenset({"dead_units", "no_gradient", "collapsed_output"}),
        tuple(name for name, net in ALL_NETS.items() if net.bias),
    ),
    "frozen layer": Fault(frozen, frozenset({"not_updated"})),
    "layer without optimizer": Fault(left_out, frozenset({"not_updated"})),
    "unused branch": Fault(unused_branch, frozenset({"no_gradient"})),
    "detached graph": Fault(detached, frozenset({"no_gradient"})),
    "inputs 0..255": Fault(unstandardised, frozenset({"inputs_not_standardised"})),
    "labels shuffled": Fault(shuffled_labels, frozenset({"not_learning"})),
    "NaN in one batch": Fault(nan_batch, frozenset({"non_finite"})),
    "doubled softmax": Fault(doubled_softmax, frozenset({"doubled_softmax"})),
    "batch norm in eval mode": Fault(
        batch_norms(lambda norm: norm.eval()), frozenset({"batch_norm_eval_mode"}), _NORM_NETS
    ),
    "batch norm, momentum 1": Fault(
        batch_norms(lambda norm: setattr(norm, "momentum", 1.0)),
        frozenset({"batch_norm_running_statistics"}),
        _NORM_NETS,
    ),
    "batch norm, batch of 2": Fault(batch_of_two, frozenset({"batch_norm_small_batch"}), _NORM_NETS),
    "clipping to 1e-4": Fault(tight_clipping, frozenset({"clipping_too_tight"})),
    "fp16 overflow": Fault(overflow, frozenset({"loss_scale_overflow"}), ("mlp", "mlp_bn", "cnn", "cnn_bn")),
    "one layer x100": Fault(one_layer(100), _GROWS | {"poor_initialisation", "dead_units", "saturated"}),
    "one layer x1e-4": Fault(one_layer(1e-4), _DEPTH),
}
