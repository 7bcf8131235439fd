"""Activations that are no modules: functions and methods called in a net's forward passes, and composites."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from types import FrameType
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.recorders.activation_kinds import Kind, is_composite, kind_of_call, kind_of_module, tensor_of
from bnlab_callbacks.recorders.unit_dims import UnitDims
from bnlab_callbacks.recorders.unseen import EVALUATION
from bnlab_callbacks.statistics.activations import ACTIVATIONS


class Recorder(Protocol):
    """Where activations are noted."""

    spent: float

    def note(self, layer: str, output: Any, kind: Kind, is_module: bool, given: Any) -> None:
        """An activation was computed of what was given."""

    def not_seen(self, layer: str, reason: str) -> None:
        """One was, and is not recorded."""

    def count(self) -> int:
        """How many are noted."""

    def drop(self, start: int) -> None:
        """Forget those from this one on."""


class _Place(NamedTuple):
    """One of the net's modules.

    Attributes:
        module: it.
        layer: its name.
        role: an `activation` with a hook of its own, a `composite` without one, or a `metric`: functions in these do
            not count; None for any other.
    """

    module: nn.Module
    layer: str
    role: Literal["activation", "composite", "metric"] | None

    @classmethod
    def of(cls, name: str, module: nn.Module) -> _Place:
        """The module of this name."""
        if isinstance(module, ACTIVATIONS):
            return cls(module, clean_name(name), "activation")
        if is_composite(module):
            return cls(module, clean_name(name), "composite")
        return cls(module, clean_name(name), "metric" if _is_metric(module) else None)


class _Frame:
    """A module whose forward pass runs.

    Attributes:
        place: the module.
        forward: the model's own `forward`, as it was when it began.
        silent: whether functions in it do not count, or those in one that it runs in.
        composite: whether it is a composite to be noted.
        start: number of activations that were noted before it.
        last: the last activation function in it, with its output.
    """

    __slots__ = ("composite", "forward", "last", "place", "silent", "start")

    def __init__(self, place: _Place, start: int) -> None:
        self.place, self.start = place, start
        self.forward = vars(place.module).get("forward")
        self.silent = self.composite = False
        self.last: tuple[Tensor, Kind] | None = None


class FunctionalActivations:
    """Notes the activation functions that a net's modules call, and composites, named after the module they run in.

    What runs outside any of the net's modules is none of the net's: in `training_step`, also where a strategy (DDP)
    runs it within a forward pass, in another net, in a metric. A module is a loss, and nothing in it counts, if it has
    no weights to be trained and gives one number, or is given what are targets by their shape.

    Attributes:
        failure: the last error, noted by the function mode.
        units: where tensors' units lie, and what becomes of activations.

    Args:
        model: the net.
        recorder: where activations are noted.
    """

    def __init__(self, model: nn.Module, recorder: Recorder) -> None:
        self.failure: str | None = None
        self.units = UnitDims()
        self._model = model
        self._recorder = recorder
        self._frames: list[_Frame] = []
        self._places: dict[int, _Place] = {}
        self._weighted: dict[int, bool] = {}
        self._find()

    def begin(self) -> None:
        """A batch begins."""
        self.forget()

    def forget(self) -> None:
        """Keep no tensors."""
        self._frames.clear()
        self.units.forget()
        self._weighted.clear()

    def _find(self) -> None:
        self._places = {id(module): _Place.of(name, module) for name, module in self._model.named_modules()}

    @property
    def in_metric(self) -> bool:
        """Whether a metric computes."""
        return any(frame.place.role == "metric" for frame in self._frames)

    # modules

    def entered(self, module: nn.Module) -> None:
        """A module's forward pass begins."""
        start = perf_counter()
        if id(module) not in self._places:
            self._find()  # some join late
        place = self._places[id(module)]
        frame = _Frame(place, self._recorder.count())
        inside = bool(self._frames) and self._frames[-1].silent
        frame.composite = place.role == "composite" and not inside
        frame.silent = inside or place.role is not None
        self._frames.append(frame)
        self._recorder.spent += perf_counter() - start

    def _is_redirected(self, frame: _Frame) -> bool:
        """Whether a strategy runs `training_step` in place of the model's own forward pass.

        It puts something else there for a call, which then puts it back.
        """
        return frame.place.module is self._model and vars(self._model).get("forward") is not frame.forward

    def left(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """It is over."""
        start = perf_counter()
        if not any(frame.place.module is module for frame in self._frames):
            return
        while (frame := self._frames.pop()).place.module is not module:
            pass
        if output is not None:
            if frame.composite:
                self._take_composite(frame, args, output)
            elif self._recorder.count() > frame.start and self._is_no_part(frame.place, args, kwargs, output):
                self._recorder.drop(frame.start)
        self._recorder.spent += perf_counter() - start

    def _take_composite(self, frame: _Frame, args: Sequence[Any], output: Any) -> None:
        tensor, given = tensor_of(output), tensor_of(args)
        if tensor is not None and given is not None and tensor.numel() == 1 < given.numel():
            return  # a loss
        kind = (
            frame.last[1] if frame.last is not None and frame.last[0] is tensor else kind_of_module(frame.place.module)
        )
        if not frame.place.module.training:
            self._recorder.not_seen(frame.place.layer, EVALUATION)
        else:
            self._recorder.note(frame.place.layer, output, kind, True, args[0] if args else None)

    def _is_no_part(self, place: _Place, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> bool:
        """Whether a module is none of the net's parts, though the net has it: a metric, or a loss."""
        if place.role is not None:
            return place.role == "metric"
        module = place.module
        one_number = any(tensor.numel() == 1 for tensor in _tensors(output))
        if not one_number and not _given_targets([*args, *kwargs.values()]):
            return False
        weighted = self._weighted.get(id(module))
        if weighted is None:
            weighted = any(p.requires_grad and p.numel() > 1 for p in module.parameters())
            self._weighted[id(module)] = weighted
        return not weighted

    # functions

    def called(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """A torch function has been called."""
        start = perf_counter()
        name = getattr(function, "__name__", "")
        frame = self._frames[-1] if self._frames else None
        here = 0 if frame is None else id(frame.place.module)
        self.units.follow(name, args, kwargs, out, here)
        if frame is not None:
            kind = kind_of_call(name, args, kwargs)
            if kind is not None:
                self._take_call(frame, kind, args, out)
        self._recorder.spent += perf_counter() - start

    def _take_call(self, frame: _Frame, kind: Kind, args: Sequence[Any], out: Any) -> None:
        if frame.silent:
            if isinstance(out, Tensor):
                frame.last = out, kind
            return
        if self._is_redirected(frame):
            return
        layer = f"{frame.place.layer}.{kind.name}".lstrip(".")
        if not frame.place.module.training:
            self._recorder.not_seen(layer, EVALUATION)
        else:
            self._recorder.note(layer, out, kind, False, args[0] if args else None)

    def backward(self, losses: Sequence[Tensor]) -> None:
        """A backward pass begins; nothing of it is seen."""


def _is_metric(module: nn.Module) -> bool:
    kinds = type(module).__mro__
    return any(kind.__name__ == "Metric" and kind.__module__.startswith("torchmetrics") for kind in kinds)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (one for one in value.values() if isinstance(one, Tensor))
    elif isinstance(value, tuple | list):
        yield from (one for one in value if isinstance(one, Tensor))


def _given_targets(given: Sequence[Any]) -> bool:
    """Whether there is, beside what a net made, what may be its targets: of its shape, or one class for each row."""
    tensors = list(_tensors(given))
    made = [one for one in tensors if one.requires_grad and one.numel() > 1]
    rest = [one for one in tensors if not one.requires_grad]
    return any(
        target.shape == output.shape
        or (not target.is_floating_point() and output.ndim > 1 and _is_class_each(target, output))
        for output in made
        for target in rest
    )


def _is_class_each(target: Tensor, output: Tensor) -> bool:
    """Whether (N, …) are classes of outputs (N, …, C) or (N, C, …)."""
    shape = tuple(target.shape)
    return shape in (tuple(output.shape[:-1]), (*output.shape[:1], *output.shape[2:]))


def is_checkpointed() -> bool:
    """Whether this runs in the first forward pass of a block under reentrant checkpointing, which has no gradients."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_varnames[:2] == ("ctx", "run_function"):
            return True
        frame = frame.f_back
    return False


def is_transformed(tensor: Tensor) -> bool:
    """Whether it is a wrapper of one of torch.func's transforms, whose values are no numbers yet."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))
