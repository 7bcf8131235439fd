"""Signals and gradients of one batch, layer by layer, against what theory expects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from bnlab_callbacks.core.function_mode import FunctionMode
from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.diagnosis.preflight.theory import fan_scales, gaussian_moments
from bnlab_callbacks.recorders.activation_kinds import Kind, kind_of_module
from bnlab_callbacks.recorders.activations import find_activations, is_dense_float, units_of
from bnlab_callbacks.recorders.functional_activations import FunctionalActivations
from bnlab_callbacks.statistics.activations import ACTIVATIONS
from bnlab_callbacks.statistics.batch_norm import values_a_channel

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm)
# pass a signal on, more or less: what lies behind them still belongs to the layer before
_PASSING = (nn.modules.dropout._DropoutNd, nn.Flatten, nn.Identity)
_NORM_FUNCTIONS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
_PASSING_FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "flatten", "view", "reshape")
_OVERFLOW = 1e150  # squares beyond it are not computed


@dataclass
class LayerFlow:
    """One linear or convolution layer in one batch; numbers that are not known are None.

    `z` is the activation's input: the layer's output, or that of the norm right behind it.
    """

    layer: str
    normalised: bool = False  # a norm lies right behind it
    z_mean: float = 0.0
    z_std: float = 0.0
    activation: str | None = None  # the module or function right behind z
    act_std: float | None = None  # of its outputs
    dead: float | None = None  # share of a rectifier's units that are silent in the whole batch
    grad: float | None = None  # root mean square of the gradient with respect to z
    gain: float | None = None  # variance of z over that of the layer before
    gain_expected: float | None = None
    grad_gain: float | None = None  # mean square of the gradient with respect to z over that of the layer behind
    grad_gain_expected: float | None = None
    norm_values: int | None = None  # that a channel of its batch norm has to normalise with
    finite: bool = True


class FlowHooks:
    """Forward hooks on a copy of a module, which is run once with them and then thrown away.

    Activations that are no modules are seen from `__init__` to `before_backward`.

    Attributes:
        mode: which sees them.
        rows: the layers so far.
        norm_values: batch-norm layers → values of one channel in the batch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.spent = 0.0
        self.failure: str | None = None
        self.rows: list[LayerFlow] = []
        self.norm_values: dict[str, int] = {}
        self._modules: list[tuple[nn.Module, Kind | None]] = []  # of each row: the layer, its activation
        self._behind: dict[int, tuple[Tensor, LayerFlow]] = {}  # which tensors carry a row's z on; kept, so ids hold
        self._units = {id(module): unit_dim for _, module, unit_dim in find_activations(model)}
        self.mode, self._functions = FunctionMode(), FunctionalActivations(model, self)
        for subscriber in (self, self._functions):
            self.mode.join(subscriber, model)
            self.mode.enter(subscriber)
        self._handles: list[RemovableHandle] = []
        watched: tuple[type[nn.Module], ...] = (nn.Linear, _ConvNd, *ACTIVATIONS, *_NORMS, *_PASSING)
        for name, module in model.named_modules():
            if isinstance(module, watched):
                self._handles.append(module.register_forward_hook(self._hook(clean_name(name))))

    def before_backward(self) -> None:
        """See no more functions."""
        self.mode.quit(self)
        self.mode.quit(self._functions)
        self._functions.forget()

    def called(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """A torch function has been called: a norm, or what passes a signal on, that may be no module."""
        name = getattr(function, "__name__", "")
        if not args or (name not in _NORM_FUNCTIONS and name not in _PASSING_FUNCTIONS):
            return
        source = self._behind.get(id(args[0]))
        if source is None or not is_dense_float(out) or source[1] is not self.rows[-1]:
            return
        if name in _PASSING_FUNCTIONS:
            self._behind[id(out)] = (out, source[1])
        elif source[1].activation is None:
            source[1].normalised = True
            self._take(source[1], out)

    def backward(self, losses: Sequence[Tensor]) -> None:
        """A backward pass begins."""

    def entered(self, module: nn.Module) -> None:
        """A module's forward pass begins."""

    def left(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """It is over."""

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not is_dense_float(output):
                return
            source = self._behind.get(id(args[0])) if args else None
            if isinstance(module, nn.Linear | _ConvNd):
                self.rows.append(LayerFlow(name))
                self._modules.append((module, None))
                self._take(self.rows[-1], output)
            elif isinstance(module, _BatchNorm):
                values = values_a_channel(output)
                self.norm_values[name] = min(values, self.norm_values.get(name, values))
            if source is None or source[1] is not self.rows[-1]:
                return
            if isinstance(module, _NORMS) and source[1].activation is None:
                source[1].normalised = True
                self._take(source[1], output)
            elif isinstance(module, ACTIVATIONS) and source[1].activation is None:
                self._see_activation(source[1], kind_of_module(module), output, self._units.get(id(module)))
            elif isinstance(module, _PASSING):
                self._behind[id(output)] = (output, source[1])

        return hook

    def _take(self, row: LayerFlow, z: Tensor) -> None:
        """Measure z, and its gradient when it comes."""
        wide = z.detach().double()
        std, mean = torch.std_mean(wide, correction=0)
        row.z_mean, row.z_std = float(mean), float(std)
        row.finite = row.finite and bool(torch.isfinite(z).all())
        self._behind[id(z)] = (z, row)
        if z.requires_grad:

            def note(grad: Tensor) -> None:
                row.grad = float(grad.detach().double().square().mean().sqrt())

            z.register_hook(note)  # type: ignore[no-untyped-call]

    def note(self, layer: str, output: Any, kind: Kind, is_module: bool, given: Any) -> None:
        """A function or a composite was called."""
        source = self._behind.get(id(given))
        if not is_dense_float(output) or source is None or source[1] is not self.rows[-1]:
            return
        if source[1].activation is None:
            same = output.shape == source[0].shape  # not divided, as by gated linear units
            self._see_activation(source[1], kind if same else kind._replace(module=None), output, None)

    def not_seen(self, layer: str, reason: str) -> None:
        """One in evaluation mode was."""

    def count(self) -> int:
        """None of them is kept."""
        return 0

    def drop(self, start: int) -> None:
        """None of them is kept."""

    def _see_activation(self, row: LayerFlow, kind: Kind, output: Tensor, unit_dim: int | None) -> None:
        row.activation = kind.name
        row.act_std = float(output.detach().double().std(correction=0))
        self._modules[-1] = (self._modules[-1][0], kind)
        if kind.bounds.rectifier and output.shape[0] > 1:
            origin = self._functions.units.origin(output)
            unit_dim = units_of(output.ndim, unit_dim) if origin is None else output.ndim - origin.right
            silent = output.detach().movedim(unit_dim, 0).flatten(1).amax(1) <= 0
            row.dead = float(silent.double().mean())

    def finish(self) -> list[LayerFlow]:
        """The layers in order of execution, with their gains; after the backward pass."""
        self.before_backward()
        for handle in self._handles:
            handle.remove()
        pairs = list(zip(self.rows, self._modules, strict=True))
        for (before, (_, phi)), (row, (layer, _)) in pairwise(pairs):
            _add_gains(before, phi, row, layer)
        self._behind.clear()
        return self.rows


def _add_gains(before: LayerFlow, phi: Kind | None, row: LayerFlow, layer: nn.Module) -> None:
    """Variance ratios between two layers that follow one another, and what theory expects where nothing lies between.

    Where a norm follows the layer, no gain is expected but that of the norm: none is given. Nor is one behind an
    activation of which theory knows nothing.
    """
    known = before.finite and row.finite and max(before.z_std, row.z_std) < _OVERFLOW
    if not known or before.z_std == 0:
        return
    row.gain = (row.z_std / before.z_std) ** 2
    if before.grad is not None and row.grad:
        before.grad_gain = (before.grad / row.grad) ** 2
    weight = getattr(layer, "weight", None)
    if row.normalised or not isinstance(weight, Tensor) or weight.ndim < 2:
        return
    forward, backward = fan_scales(weight, isinstance(layer, _ConvTransposeNd))
    groups = getattr(layer, "groups", 1)
    if phi is None:
        square, slope = before.z_std**2 + before.z_mean**2, 1.0
    elif phi.module is None:
        return
    else:
        square, slope = gaussian_moments(phi.module, before.z_mean, before.z_std)
    row.gain_expected = forward * square / before.z_std**2
    if before.grad_gain is not None:
        before.grad_gain_expected = backward * slope / groups
