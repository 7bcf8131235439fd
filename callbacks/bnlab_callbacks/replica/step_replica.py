"""A training step that can be run again, on copies: other weights, all else as it was, and nothing left in the run."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bnlab_callbacks.core.random_state import RandomState
from bnlab_callbacks.statistics.chunks import wide_dtype


class Evaluation(NamedTuple):
    """Loss and gradient at some weights."""

    loss: Tensor  # 0-dimensional
    grads: dict[str, Tensor]  # by the parameter's name, dense; without parameters that get none


class RepeatableStep(Protocol):
    """A training step of some training loop, as it is about to begin: what a replica must know to run it again."""

    def to_share(self, module: nn.Module) -> dict[int, Any]:
        """What copies of the module hold as it is, or as something else, by the id of what the module holds."""

    def prepare(self, twin: nn.Module, original: nn.Module) -> None:
        """Cut off a fresh copy from the run: what it logs goes nowhere."""

    def loss(self, twin: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, with its graph.

        Raises:
            TypeError: there is none.
        """

    def undisturbed(self) -> AbstractContextManager[Any]:
        """A context for passes of copies: in the run's precision, and the run takes no note of them."""

    def loss_scale(self) -> float:
        """What the run multiplies losses by before the backward pass; 1 but for half precision."""


class StepReplica:
    """The step that is about to begin: module, batch and random state are copied when this is made.

    Each evaluation computes the loss on a copy of its own, from the same state and random numbers (so with the same
    dropout mask), in the run's precision, without compilation. The module's parameters, gradients, buffers and metrics,
    and all random generators, are left as they were; effects that the step has outside its module (files, global
    variables) are not held back. Data sets that the module holds are shared by the copies.

    Args:
        step: the step, as the training loop runs it.
        module: the module, in training mode.
        batch: what the step is about to get.

    Raises:
        TypeError: a method was replaced by a function that would act on the original.
        Exception: whatever copying the module or the batch raises.
    """

    def __init__(self, step: RepeatableStep, module: nn.Module, batch: Any) -> None:
        self._step = step
        self._random = RandomState(devices_of(module))
        self.module = self._copy(module)  # which evaluations start from: to be looked at, not to be run
        _check_copy(module, self.module)
        self._batch = copy.deepcopy(batch)
        self.weights: dict[str, nn.Parameter] = dict(self.module.named_parameters())

    def twin(self, weights: Mapping[str, Tensor]) -> Any:
        """A fresh copy of the module with some parameters replaced, for `run`."""
        twin = self._copy(self.module)
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        return twin

    def run(
        self,
        twin: nn.Module,
        begin: Callable[[Any], None] | None = None,
        see: Callable[[Tensor], None] | None = None,
    ) -> Evaluation:
        """Loss and gradient of a copy that `twin` made.

        Args:
            twin: the copy.
            begin: is given the batch, right before the step.
            see: is given the loss with its graph.
        """
        scale = self._step.loss_scale()  # half-precision gradients would be 0 without it
        with self.loss(twin, begin) as loss:
            if see is not None:
                see(loss)
            (loss * scale).backward()  # type: ignore[no-untyped-call]
        return Evaluation(loss.detach().to(wide_dtype(loss)), _take_gradients(twin, scale))

    @contextmanager
    def loss(self, twin: nn.Module, begin: Callable[[Any], None] | None = None) -> Iterator[Tensor]:
        """The loss of a copy that `twin` made, with its graph, for backward passes within the context."""
        before = RandomState(devices_of(twin))
        self._random.restore()
        try:
            with self._step.undisturbed(), torch.enable_grad():
                batch = copy.deepcopy(self._batch)
                if begin is not None:
                    begin(batch)
                yield self._step.loss(twin, batch)
        finally:
            before.restore()

    def evaluate(self, weights: Mapping[str, Tensor]) -> Evaluation:
        """Loss and gradient where some parameters have other values, one forward and one backward pass."""
        return self.run(self.twin(weights))

    def _copy(self, module: nn.Module) -> nn.Module:
        twin = copy.deepcopy(module, self._step.to_share(module) | _special_cases(module))
        self._step.prepare(twin, module)
        return twin


def devices_of(module: nn.Module) -> set[torch.device]:
    """Where its parameters and buffers lie."""
    return {tensor.device for tensor in (*module.parameters(), *module.buffers())}


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Give gradients and buffers back as they are now.

    Raises:
        RuntimeError: something changed them: a copy holds a function that is bound to the original.
    """
    grads = [(parameter, parameter.grad) for parameter in module.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        yield
    finally:
        touched = any(parameter.grad is not None for parameter, _ in grads)
        for parameter, grad in grads:
            parameter.grad = grad
        for buffer, value in buffers:
            # by value: batch norm does not count its changes in the version of a tensor
            if not torch.equal(buffer.nan_to_num(), value.nan_to_num()):
                touched = True
                with torch.no_grad():
                    buffer.copy_(value)
    if touched:
        raise RuntimeError("a function that the module holds acts on the original, also in a copy")


def _check_copy(module: nn.Module, twin: nn.Module) -> None:
    for (name, part), other in zip(module.named_modules(), twin.modules(), strict=True):
        for method in ("forward", "training_step"):
            own = vars(part).get(method)
            if own is not None and own is vars(other).get(method):
                raise TypeError(f"{method} of {name or 'the module'} was replaced by a function that cannot be copied")


def _special_cases(module: nn.Module) -> dict[int, Any]:
    """What modules hold and copies get otherwise, by id.

    Tensors with a history (a metric's last value) lose it, since deepcopy refuses them; data sets are shared.
    """
    held: list[Any] = [value for part in module.modules() for value in vars(part).values()]
    for value in list(held):
        if isinstance(value, list | tuple):
            held += value
        elif isinstance(value, dict):
            held += value.values()
    histories = {id(x): x.detach().clone() for x in held if isinstance(x, Tensor) and not x.is_leaf}
    return histories | {id(x): x for x in held if isinstance(x, Dataset | DataLoader)}


def _take_gradients(twin: nn.Module, scale: float) -> dict[str, Tensor]:
    grads = {}
    for name, parameter in twin.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            grads[name] = grad if scale == 1 else grad / scale
    return grads
