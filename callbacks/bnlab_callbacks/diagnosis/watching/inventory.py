"""An inventory of a net: its trained and frozen layers, their optimizers, and the weights that they begin with."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import Optimizer

from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.core.weights import Weight, find_weights
from bnlab_callbacks.diagnosis.observations import Facts
from bnlab_callbacks.diagnosis.watching.parts import inputs_of_units, parts_of
from bnlab_callbacks.recorders.batch_norm import find_batch_norms

_UNITS = (nn.Linear, _ConvNd, nn.RNNBase, nn.MultiheadAttention)  # whose weights multiply what comes in
_RESCALES = (_BatchNorm, _InstanceNorm, nn.GroupNorm)


def facts_of(model: nn.Module, optimizers: Sequence[Optimizer], first: bool) -> Facts:
    """What is known of a net when its run begins, or goes on.

    Args:
        model: the model.
        optimizers: all that train it.
        first: whether it has its first weights.
    """
    weights = list(find_weights(model))
    return Facts(
        without_optimizer=layers_without_optimizer(weights, optimizers),
        frozen=frozen_layers(model),
        constant=constant_layers(model) if first else {},
        norm_momentum=norm_momenta(model),
        weights={weight.layer: weight.parameter.numel() for weight in weights},
        fans=fans(model, weights),
        rescaled=frozenset(rescaled(model)),
        has=parts_of(model),
        inputs=inputs_of_units(model),
    )


def frozen_layers(model: nn.Module) -> tuple[str, ...]:
    """Modules that hold weights (two or more dimensions) of which none is trainable."""
    return tuple(
        clean_name(name)
        for name, module in model.named_modules()
        if (own := [weight for weight in module.parameters(recurse=False) if weight.ndim > 1])
        and not any(weight.requires_grad for weight in own)
    )


def layers_without_optimizer(weights: Sequence[Weight], optimizers: Sequence[Optimizer]) -> tuple[str, ...]:
    """Trainable layers that are in no optimizer's parameter groups; none where there are no optimizers to see."""
    held = {id(parameter) for optimizer in optimizers for parameter in _parameters(optimizer)}
    return tuple(weight.layer for weight in weights if id(weight.parameter) not in held) if optimizers else ()


def fans(model: nn.Module, weights: Sequence[Weight]) -> dict[str, int]:
    """Linear, convolution and recurrent layers → inputs or outputs of a unit, whichever are fewer.

    Usual initializations take their scale from the one, the other or both (He et al. 2015; Glorot & Bengio 2010;
    PyTorch's of recurrent layers), so that root mean square times the root of the smaller is below 2 in all of them.
    An embedding's rows are outputs as they are, and weights behind a weight norm have no scale of their own.
    """
    modules = dict(model.named_modules())
    return {
        weight.layer: min(weight.parameter.shape[:2]) * math.prod(weight.parameter.shape[2:])
        for weight in weights
        if isinstance(modules[weight.module], _UNITS) and not weight.layer.endswith("weight_v")
    }


def rescaled(model: nn.Module) -> Iterator[str]:
    """Linear and convolution layers that a batch, instance or group norm follows, in order of definition.

    Layer norms are left out: in a transformer the one that is defined next is not the one that comes next.
    """
    before: str | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            before = clean_name(name)
        elif isinstance(module, _RESCALES) and before is not None:
            yield before
            before = None
        elif not isinstance(module, nn.Identity | _DropoutNd) and next(module.children(), None) is None:
            before = None


def constant_layers(model: nn.Module) -> dict[str, float]:
    """Layers of two or more weights that are all equal → the weight; one copy off the device.

    An embedding's rows, the units of a depthwise convolution and a single unit get gradients of their own, so that of
    these only zeros count.
    """
    modules = dict(model.named_modules())
    weights = list(find_weights(model))
    dense = [w for w in weights if w.parameter.layout == torch.strided and not w.parameter.is_complex()]
    dense = [weight for weight in dense if weight.parameter.numel() > 1 and weight.parameter.device.type != "meta"]
    if not dense:
        return {}
    ends = [torch.stack(torch.aminmax(weight.parameter.detach().float())) for weight in dense]
    pairs = torch.stack([pair.to(ends[0].device) for pair in ends]).tolist()
    return {
        weight.layer: low
        for weight, (low, high) in zip(dense, pairs, strict=True)
        if low == high and (low == 0 or _has_copies(modules[weight.module], weight.parameter))
    }


def _has_copies(module: nn.Module, weight: Tensor) -> bool:
    """Whether units with equal weights get equal gradients."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return False
    if isinstance(module, _ConvNd):
        return 1 not in weight.shape[:2] and module.groups < module.in_channels
    return weight.shape[0] > 1


def norms_in_eval_mode(model: nn.Module, with_gradient: bool = False) -> tuple[str, ...]:
    """Batch-norm layers with trainable scales and running statistics in evaluation mode, in a module that trains.

    Args:
        model: the model.
        with_gradient: only those whose scales have one: a copy that is not trained (a baseline, a teacher) rests.
    """
    return tuple(
        name
        for name, norm in find_batch_norms(model)
        if model.training
        and not norm.training
        and norm.track_running_stats
        and norm.weight is not None
        and norm.weight.requires_grad
        and not (with_gradient and norm.weight.grad is None)
    )


def norm_momenta(model: nn.Module) -> dict[str, float | None]:
    """Batch-norm layers with running statistics → momentum."""
    return {name: norm.momentum for name, norm in find_batch_norms(model) if norm.track_running_stats}


def has_gradient(optimizer: Optimizer) -> bool:
    """Whether any of an optimizer's parameters has a gradient, so that its step can change something."""
    return any(parameter.grad is not None for parameter in _parameters(optimizer))


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
