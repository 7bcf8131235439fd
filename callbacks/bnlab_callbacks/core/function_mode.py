"""The one function mode of a run: it shows its subscribers the torch functions that a training step calls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MethodWrapperType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from bnlab_callbacks.core.forward_calls import ForwardCalls, is_compiled
from bnlab_callbacks.core.hooks import HookOwner, ModuleHook, ModuleHooks
from bnlab_callbacks.core.naming import clean_name

_BACKWARD = (Tensor.backward, torch.autograd.backward)
# in evaluation mode these compute by another kernel while any mode is on: other bits
_HEED_MODES = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


class Subscriber(Protocol):
    """Whoever wants to see calls.

    Attributes:
        failure: the last error in it, noted by the mode; the step goes on.
    """

    failure: str | None

    def called(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """A torch function has been called; functions that it calls itself are not seen."""

    def backward(self, losses: Sequence[Tensor]) -> None:
        """A backward pass is about to begin from these tensors."""

    def entered(self, module: nn.Module) -> None:
        """The forward pass of one of the model's modules begins."""

    def left(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """It is over; the output is None after an exception."""


class FunctionMode(TorchFunctionMode):
    """Sees the torch functions of one thread, and its modules' forward passes, while somebody wants to see them.

    One for all subscribers of a run, since a mode's `__exit__` takes off whichever is on top. What functions compute is
    the same with it. It is on from the first subscriber's `enter` to the last one's `leave`, which may come in any
    order with the modes of others. It stays off where it would change what is computed, or make a compiler work anew:
    in attention in evaluation mode; in compiled submodules; for good in a model that was compiled in place, or once a
    compiler was at work outside of it. Code that runs within a backward pass (checkpointing's repetitions) is not seen.
    A copy sees nothing.

    Attributes:
        within_backward: whether a backward pass runs that was begun under it.
        paused: whether a compiled module runs, in which it is off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.within_backward = self.paused = False
        self._members: list[Subscriber] = []
        self._listening: list[Subscriber] = []
        self._owner = HookOwner()
        self._hooks = ModuleHooks(self._owner.gate)
        self._forwards = ForwardCalls(self._entered, self._left)
        self._resting: nn.Module | None = None  # attention whose kernel it is not to change
        self._waits = False  # for a forward pass, before it goes on
        self._compiled = False
        self._compiled_parts: list[str] = []
        self._place = 0  # in the stack of modes
        self._frames = _compiled_frames()

    def __reduce__(self) -> tuple[type[FunctionMode], tuple[()]]:  # for pickle and copy alike
        return FunctionMode, ()

    def join(self, subscriber: Subscriber, model: nn.Module) -> None:
        """Have one more subscriber; the first one's model is searched for the parts that the mode must stay away from.

        It sees nothing before `enter`.
        """
        if not self._members:
            self._search(model)
        if subscriber not in self._members:
            self._members.append(subscriber)

    def quit(self, subscriber: Subscriber) -> None:
        """Have one less; harmless when repeated."""
        self.leave(subscriber)
        if subscriber in self._members:
            self._members.remove(subscriber)
        if not self._members:
            self._hooks.remove()
            self._forwards.forget()

    def _search(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        self._compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in modules.values())
        self._compiled_parts = [clean_name(name) for name, module in modules.items() if is_compiled(module)]
        self._frames = _compiled_frames()
        if not self._compiled:
            self._forwards.watch(model)
        for part in modules.values():
            if is_compiled(part):
                self._hooks.add(partial(part.register_forward_pre_hook, _Pause(self._owner, self, False)))
                behind = _Pause(self._owner, self, True)
                self._hooks.add(partial(part.register_forward_hook, behind, always_call=True))
        self._hooks.take_off()

    @property
    def on(self) -> bool:
        """Whether it sees calls of this thread."""
        return self in _stack()

    def tells(self, subscriber: Subscriber) -> bool:
        """Whether a subscriber is shown what is called now; on the way to it the mode itself is off."""
        return subscriber in self._listening and not self.paused

    @property
    def unseen(self) -> list[str]:
        """Names of the modules that are compiled, in which nothing is seen; of a model with one in place, the model's.

        Empty names stand for the model itself.
        """
        return [""] if self._compiled else self._compiled_parts

    def enter(self, subscriber: Subscriber, again: bool = False, waits: bool = False) -> None:
        """Show the calls that follow to a subscriber, unless that would change something; harmless when repeated.

        Args:
            subscriber: one that has joined.
            again: whether it is where it was that it goes into the stack of modes, beneath what has come since.
            waits: whether only those from the next forward pass of one of the model's modules on; the optimizer's
                step then goes on without the mode.
        """
        if self._compiled or subscriber not in self._members or subscriber in self._listening:
            return
        if _compiled_frames() != self._frames and not self._hooks:
            self._compiled = True
            return
        self._listening.append(subscriber)
        if len(self._listening) == 1:
            if not again:
                self._place = len(_stack())
            self._hooks.put_on()
            self._forwards.open()
            self._waits = waits
        self._waits &= waits
        if not self._waits:
            self.put(True)

    def leave(self, subscriber: Subscriber) -> None:
        """Show it nothing more; harmless when repeated."""
        if subscriber not in self._listening:
            return
        self._listening.remove(subscriber)
        if not self._listening:
            self._hooks.take_off()
            self._forwards.close()
            self.put(False)
            self._resting, self._waits = None, False

    def rest(self) -> None:
        """Take the hooks off the modules, since the step that begins is not recorded; harmless when repeated."""
        if not self._listening:
            self._forwards.take_off()

    def put(self, on: bool) -> None:
        """Put it where it belongs in the stack of modes, or take it out, if somebody listens."""
        stack = _stack()
        if (self in stack) == on or (on and not self._listening):
            return
        above = stack[self._place :] if on else stack[stack.index(self) + 1 :]
        # by the base class's own push and pop: others may do more when they are entered
        for mode in reversed(above if on else [self, *above]):
            TorchFunctionMode.__exit__(mode, None, None, None)  # type: ignore[no-untyped-call]
        for mode in [self, *above] if on else above:
            TorchFunctionMode.__enter__(mode)  # type: ignore[no-untyped-call]

    def _entered(self, module: nn.Module) -> None:
        if self._waits:
            self._waits = False
            self.put(True)
        self._tell("entered", module)
        if self._resting is None and isinstance(module, _HEED_MODES) and not module.training:
            self._resting = module
            self.put(False)

    def _left(self, module: nn.Module, *given: Any) -> None:
        if module is self._resting:
            self._resting = None
            self.put(True)
        self._tell("left", module, *given)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function as it would be without the mode, and show the call."""
        kwargs = kwargs or {}
        if type(func) is MethodWrapperType or torch.compiler.is_compiling():  # a property, as `shape`
            return func(*args, **kwargs)
        if func in _BACKWARD:  # before it: behind it there is no graph
            self._tell("backward", _losses(*args, **kwargs))
            self.within_backward = True
            try:
                return func(*args, **kwargs)
            finally:
                self.within_backward = False
        out = func(*args, **kwargs)
        for subscriber in self._listening:
            try:
                subscriber.called(func, args, kwargs, out)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
                subscriber.failure = f"{type(error).__name__}: {error}"
        return out

    def _tell(self, event: str, *given: Any) -> None:
        for subscriber in self._listening:
            try:
                getattr(subscriber, event)(*given)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
                subscriber.failure = f"{type(error).__name__}: {error}"


class _Pause(ModuleHook):
    """Takes the mode off before a compiled module runs, or puts it on again behind it."""

    def __init__(self, into: HookOwner, mode: FunctionMode, behind: bool) -> None:
        super().__init__("", into)
        self.mode, self.behind = mode, behind

    def __call__(self, module: nn.Module, *given: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self.mode.paused = not self.behind
        self.mode.put(self.behind)


def _stack() -> list[TorchFunctionMode]:
    """The modes of this thread, the outermost first."""
    return list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _losses(tensors: Tensor | Sequence[Tensor], *more: Any, **options: Any) -> list[Tensor]:
    """What `Tensor.backward` or `autograd.backward` is called with."""
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _compiled_frames() -> int:
    """How many frames a compiler has seen in this process; 0 where none was ever loaded."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["frames"]["total"])
