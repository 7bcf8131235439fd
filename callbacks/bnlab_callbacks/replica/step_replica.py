"""A training step that can be run again, on copies: other weights, all else as it was, and nothing left in the run."""

from __future__ import annotations

import copy
import inspect
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bnlab_callbacks.core.lightning.names import LightningModule, Trainer
from bnlab_callbacks.statistics.chunks import wide_dtype

# what Lightning wraps in a compiled LightningModule: functions bound to the original, also in a copy
_COMPILED = ("forward", "training_step", "validation_step", "test_step", "predict_step")


class Evaluation(NamedTuple):
    """Loss and gradient at some weights."""

    loss: Tensor  # 0-dimensional
    grads: dict[str, Tensor]  # by the parameter's name, dense; without parameters that get none


class StepReplica:
    """The step that is about to begin: module, batch and random state are copied when this is made.

    Each evaluation runs `training_step` on a copy of its own, from the same state and random numbers (so with the same
    dropout mask), in the run's precision, without compilation. What the step logs goes nowhere. The module's
    parameters, gradients, buffers and metrics, and all random generators, are left as they were; effects that a
    `training_step` has outside its module (files, global variables) are not held back. Data sets that the module holds
    are shared by the copies.

    Args:
        trainer: the Trainer; shared by the copies.
        pl_module: the module, in training mode.
        batch: what `training_step` is about to get.
        batch_idx: the batch's index.

    Raises:
        TypeError: a method was replaced by a function that would act on the original.
        Exception: whatever copying the module or the batch raises.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._trainer = trainer
        self._random = RandomState(pl_module)
        self._module = self._copy(pl_module)
        _check_copy(pl_module, self._module)
        self._batch = copy.deepcopy(batch)
        self._batch_idx = batch_idx
        self._optimizer_steps = _progress(trainer).completed
        self.weights: dict[str, nn.Parameter] = dict(self._module.named_parameters())

    @property
    def module(self) -> LightningModule:
        """The copy that evaluations start from: to be looked at, not to be run."""
        return self._module

    def twin(self, weights: Mapping[str, Tensor]) -> LightningModule:
        """A fresh copy of the module with some parameters replaced, for `run`."""
        twin = self._copy(self._module)
        twin.trainer = self._trainer
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        return twin

    def run(self, twin: LightningModule) -> Evaluation:
        """Loss and gradient of a copy that `twin` made."""
        # half-precision gradients would be 0 without the run's own loss scale
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        with self.loss(twin) as loss:
            (loss * scale).backward()  # type: ignore[no-untyped-call]
        return Evaluation(loss.detach().to(wide_dtype(loss)), _take_gradients(twin, scale))

    @contextmanager
    def loss(self, twin: LightningModule) -> Iterator[Tensor]:
        """The loss of a copy that `twin` made, with its graph, for backward passes within the context."""
        index = (self._batch_idx,) if _takes_index(twin) else ()
        before = RandomState(twin)
        self._random.restore()
        try:
            with self._undisturbed():
                output = twin.training_step(copy.deepcopy(self._batch), *index)
                loss = output["loss"] if isinstance(output, Mapping) else output
                if not isinstance(loss, Tensor):
                    raise TypeError("training_step returned no loss")
                yield loss
        finally:
            before.restore()

    def evaluate(self, weights: Mapping[str, Tensor]) -> Evaluation:
        """Loss and gradient where some parameters have other values, one forward and one backward pass."""
        return self.run(self.twin(weights))

    def _copy(self, module: LightningModule) -> LightningModule:
        memo: dict[int, Any] = {id(self._trainer): self._trainer} | _special_cases(module)
        compiler = getattr(module, "_compiler_ctx", None)
        if compiler is not None:
            memo[id(compiler)] = None
        twin = copy.deepcopy(module, memo)
        if compiler is not None:  # its wrappers call the original
            for name in _COMPILED:
                vars(twin).pop(name, None)
        for part in twin.modules():
            if isinstance(part, LightningModule):
                vars(part).update(log=_ignore, log_dict=_ignore)
        return twin

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """The precision and the `global_step` of the step, and loggers that take nothing."""
        loggers, progress = self._trainer.loggers, _progress(self._trainer)
        completed = progress.completed
        self._trainer.loggers = [_NoLogger() for _ in loggers]  # type: ignore[misc]
        progress.completed = self._optimizer_steps
        try:
            # copies are not worth compiling, and would use up the limit on recompilations
            with (
                torch.compiler.set_stance("force_eager"),
                self._trainer.precision_plugin.train_step_context(),
                torch.enable_grad(),
            ):
                yield
        finally:
            self._trainer.loggers = loggers
            progress.completed = completed


class RandomState:
    """The random generators that a training step may draw from: torch's, Python's, NumPy's if it is in use."""

    def __init__(self, model: nn.Module) -> None:
        numpy: Any = sys.modules.get("numpy")
        self._python = random.getstate()
        self._numpy = numpy.random.get_state() if numpy else None
        self._torch = torch.get_rng_state()
        tensors = [*model.parameters(), *model.buffers()]
        devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
        self._devices = {device: _generators(device).get_rng_state(*_which(device)) for device in devices}

    def restore(self) -> None:
        """Put every generator back."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        for device, state in self._devices.items():
            _generators(device).set_rng_state(state, *_which(device))


def _generators(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one such device only


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


class _NoLogger:
    """Takes anything and does nothing, whatever the depth: `logger.experiment.add_scalar(…)`."""

    def __getattr__(self, name: str) -> _NoLogger:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _NoLogger:
        return self


def _progress(trainer: Trainer) -> Any:
    """Where `trainer.global_step` comes from."""
    return trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total


def _ignore(*args: Any, **kwargs: Any) -> None:
    pass


def _takes_index(module: LightningModule) -> bool:
    """Whether `training_step` takes the batch's index, too, as Lightning sees it."""
    try:
        inspect.signature(module.training_step).bind(None, None)
    except TypeError:
        return False
    return True


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
