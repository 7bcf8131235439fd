"""The faults of the matrix: what each does to a sound run, and what a diagnosis may call it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.fault_matrix.healthy import half_precision
from benchmarks.fault_matrix.more_nets import BINARY, MORE, VALUES, WIDE
from benchmarks.fault_matrix.nets import NETS, deep
from benchmarks.fault_matrix.setup import Kind, Setup
from benchmarks.fault_matrix.unseen_nets import UNSEEN

IMAGE_NETS = (*NETS, *UNSEEN)
ALL_NETS = NETS | UNSEEN | MORE


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
    run.loss = lambda outputs, labels: F.cross_entropy(outputs.softmax(1), labels)


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


def output(activation: nn.Module) -> Callable[[Setup], None]:
    """A last activation whose values stay within bounds that the targets do not keep."""

    def inject(run: Setup) -> None:
        assert isinstance(run.net, nn.Sequential)
        run.net.add_module("out_act", copy.deepcopy(activation))

    return inject


def relu_below_zero(run: Setup) -> None:
    """Targets below 0 and a rectifier as the last layer."""
    run.targets = torch.neg
    output(nn.ReLU())(run)


def far_targets(run: Setup) -> None:
    """Targets around 1000, 200 and more of their deviations from 0."""
    run.targets = lambda targets: targets + 1000


def broadcast(run: Setup) -> None:
    """Outputs (N, 1) less targets (N,) are (N, N): each output is compared with every target."""
    run.loss = lambda outputs, targets: F.mse_loss(outputs, targets.flatten())


def labels(change: Callable[[Tensor], Tensor]) -> Callable[[Setup], None]:
    """Training labels that are not what the loss takes; torch's own check stops those of a BCELoss above 1."""

    def inject(run: Setup) -> None:
        run.batch_fault = lambda step, images, targets: (images, change(targets))

    return inject


def wrong_sign(run: Setup) -> None:
    """The loss is made as large as possible."""
    loss = run.loss
    run.loss = lambda outputs, targets: -loss(outputs, targets)


def logits_as_log_probabilities(run: Setup) -> None:
    """Logits given to a loss that takes log-probabilities."""
    run.loss = F.nll_loss


_GROWS = frozenset({"exploding", "non_finite", "learning_rate_too_high"})
_DEPTH = frozenset({"vanishing", "vanishing_with_depth", "collapsed_output", "poor_initialisation"})
_TRIVIAL = frozenset({"not_learning"})  # no better than the best constant output
_UNREACHABLE = _TRIVIAL | {"unreachable_targets"}
_FAR_TARGETS = _GROWS | _UNREACHABLE | {"learning_rate_too_low", "dead_units", "collapsed_output"}
_BROADCAST = _TRIVIAL | {"broadcast_loss"}
_NOT_BINARY = frozenset({"targets_not_binary"})
_ALL_EQUAL = frozenset({"labels_all_equal", "zero_loss"})
_INDEPENDENT = frozenset({"independent_loss", "no_gradient", "collapsed_output"})  # the loss does not see the net
_NEGATED = frozenset({"negated_loss"})
_NO_LOGARITHMS = frozenset({"not_log_probabilities"})
_ROUNDED = frozenset({"updates_lost_to_rounding"})
_UNDERFLOW = frozenset({"epsilon_underflow"})
_NORM_NETS = tuple(name for name in IMAGE_NETS if ALL_NETS[name].batch_norm)
_ONE_OUTPUT = (*IMAGE_NETS, *VALUES, *BINARY)

FAULTS: dict[str, Kind] = {
    "lr x10": Kind(learning_rate(10), _GROWS | {"dead_units", "saturated"}, _ONE_OUTPUT),
    "lr x100": Kind(learning_rate(100), _GROWS | {"dead_units", "saturated"}, _ONE_OUTPUT),
    "lr /1000": Kind(learning_rate(1e-3), frozenset({"learning_rate_too_low"}), _ONE_OUTPUT),
    "init N(0,1)": Kind(
        weights(lambda weight: weight.normal_()), _GROWS | {"poor_initialisation", "dead_units", "saturated"}
    ),
    "init N(0,1e-4^2)": Kind(weights(lambda weight: weight.normal_(std=1e-4)), _DEPTH),
    "init all equal": Kind(weights(lambda weight: weight.fill_(0.05)), frozenset({"poor_initialisation"})),
    "init all zero": Kind(
        weights(lambda weight: weight.zero_()),
        frozenset({"poor_initialisation", "no_gradient", "collapsed_output"}),
        _ONE_OUTPUT,
    ),
    "deep sigmoid": Kind(deep_net(nn.Sigmoid, 1.0), _DEPTH | {"saturated"}, ("mlp", "cnn")),
    "deep tanh, gain 0.2": Kind(deep_net(nn.Tanh, 0.2), _DEPTH, ("mlp", "cnn")),
    "deep tanh, gain 10": Kind(deep_net(nn.Tanh, 10.0), _GROWS | {"saturated", "poor_initialisation"}, ("mlp", "cnn")),
    "dead bias": Kind(
        dead_bias,
        frozenset({"dead_units", "no_gradient", "collapsed_output"}),
        tuple(name for name in IMAGE_NETS if ALL_NETS[name].bias),
    ),
    "frozen layer": Kind(frozen, frozenset({"not_updated"})),
    "layer without optimizer": Kind(left_out, frozenset({"not_updated"})),
    "unused branch": Kind(unused_branch, frozenset({"no_gradient"})),
    "detached graph": Kind(detached, frozenset({"no_gradient"})),
    "inputs 0..255": Kind(unstandardised, frozenset({"inputs_not_standardised"}), _ONE_OUTPUT),
    "labels shuffled": Kind(shuffled_labels, _TRIVIAL, _ONE_OUTPUT),
    "NaN in one batch": Kind(nan_batch, frozenset({"non_finite"})),
    "doubled softmax": Kind(doubled_softmax, frozenset({"doubled_softmax"})),
    "batch norm in eval mode": Kind(
        batch_norms(lambda norm: norm.eval()), frozenset({"batch_norm_eval_mode"}), _NORM_NETS
    ),
    "batch norm, momentum 1": Kind(
        batch_norms(lambda norm: setattr(norm, "momentum", 1.0)),
        frozenset({"batch_norm_running_statistics"}),
        _NORM_NETS,
    ),
    "batch norm, batch of 2": Kind(batch_of_two, frozenset({"batch_norm_small_batch"}), _NORM_NETS),
    "clipping to 1e-4": Kind(tight_clipping, frozenset({"clipping_too_tight"})),
    "fp16 overflow": Kind(overflow, frozenset({"loss_scale_overflow"}), ("mlp", "mlp_bn", "cnn", "cnn_bn")),
    "one layer x100": Kind(one_layer(100), _GROWS | {"poor_initialisation", "dead_units", "saturated"}),
    "one layer x1e-4": Kind(one_layer(1e-4), _DEPTH),
    "sigmoid on the output": Kind(output(nn.Sigmoid()), _UNREACHABLE | {"saturated"}, tuple(VALUES)),
    "ReLU on the output, targets < 0": Kind(
        relu_below_zero, _UNREACHABLE | {"dead_units", "no_gradient", "collapsed_output"}, tuple(VALUES)
    ),
    "targets + 1000": Kind(far_targets, _FAR_TARGETS, tuple(VALUES)),
    "(N, 1) against (N,)": Kind(broadcast, _BROADCAST, tuple(VALUES)),
    "labels 1 and 2": Kind(labels(lambda y: y + 1), _NOT_BINARY, ("mlp_logit", "cnn_bn_logit")),
    "labels all equal": Kind(labels(torch.ones_like), _ALL_EQUAL, tuple(BINARY)),
    "softmax over one output": Kind(output(nn.Softmax(1)), _INDEPENDENT, tuple(BINARY)),
    "sign of the loss": Kind(wrong_sign, _NEGATED, ("mlp", "cnn_bn", *VALUES, *BINARY)),
    "bf16 weights": Kind(half_precision("bf16-true"), _ROUNDED, tuple(WIDE)),
    "fp16 weights, Adam's epsilon": Kind(half_precision("16-true"), _UNDERFLOW, ("mlp", "mlp_bn"), ("adam", "adamw")),
    "logits as log-probabilities": Kind(logits_as_log_probabilities, _NO_LOGARITHMS, ("mlp", "cnn_bn", "lenet")),
}
