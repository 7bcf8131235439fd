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

from bnlab_callbacks.core.hooks import HookOwner, ModuleHook, ModuleHooks

_BACKWARD = (Tensor.backward, torch.autograd.backward)
# in evaluation mode these compute by another kernel while any mode is on: other bits
_HEED_MODES = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


class Subscriber(Protocol):
    """Whoever wants to see calls. An error in it is noted in the mode's `failure`, and the step goes on."""

    def called(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """A torch function has been called; functions that it calls itself are not seen."""

    def backward(self, losses: Sequence[Tensor]) -> None:
        """A backward pass is about to begin from these tensors."""


class FunctionMode(TorchFunctionMode):
    """Sees the torch functions of one thread while it is on; what they compute is the same.

    It is on between `enter` and `leave`, which may come in any order with the modes of others. It stays off where it
    would change what is computed, or make a compiler work anew: in compiled submodules; for good in a model that was
    compiled in place, or once a compiler was at work outside of it; and in steps with attention in evaluation mode.
    Code that runs within a backward pass (checkpointing's repetitions) is not seen. A copy sees nothing.

    Attributes:
        subscribers: are shown every call, in order.
        failure: the last error in a subscriber.
    """

    def __init__(self) -> None:
        super().__init__()
        self.subscribers: list[Subscriber] = []
        self.failure: str | None = None
        self._owner = HookOwner()
        self._hooks = ModuleHooks(self._owner.gate)
        self._attention: list[nn.Module] = []
        self._wanted = False
        self._compiled = False
        self._place = 0  # in the stack of modes
        self._frames = _compiled_frames()

    def __reduce__(self) -> tuple[type[FunctionMode], tuple[()]]:  # for pickle and copy alike
        return FunctionMode, ()

    def watch(self, model: nn.Module) -> None:
        """Look for the parts of a model that it must stay away from."""
        modules = list(model.modules())
        self._attention = [module for module in modules if isinstance(module, _HEED_MODES)]
        self._compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in modules)
        self._frames = _compiled_frames()
        for part in modules:
            if hasattr(type(part), "_opt_mod_attributes"):  # what `torch.compile` makes of a module
                self._hooks.add(partial(part.register_forward_pre_hook, _Pause(self._owner, self, False)))
                behind = _Pause(self._owner, self, True)
                self._hooks.add(partial(part.register_forward_hook, behind, always_call=True))
        self._hooks.take_off()

    def forget(self) -> None:
        """Leave, and forget the model; harmless when repeated."""
        self.leave()
        self._hooks.remove()
        self._attention.clear()

    @property
    def on(self) -> bool:
        """Whether it sees calls of this thread."""
        return self in _stack()

    def enter(self, again: bool = False) -> None:
        """See the calls that follow, unless that would change something; harmless when repeated.

        Args:
            again: whether it is where it was that it goes into the stack of modes, beneath what has come since.
        """
        if self._wanted or self._compiled or not all(module.training for module in self._attention):
            return
        if _compiled_frames() != self._frames and not self._hooks:
            self._compiled = True
            return
        if not again:
            self._place = len(_stack())
        self._wanted = True
        self._hooks.put_on()
        self.put(True)

    def leave(self) -> None:
        """See nothing more; harmless when repeated."""
        if not self._wanted:
            return
        self._wanted = False
        self._hooks.take_off()
        self.put(False)

    def put(self, on: bool) -> None:
        """Put it where it belongs in the stack of modes, or take it out, if it was entered."""
        stack = _stack()
        if (self in stack) == on or (on and not self._wanted):
            return
        above = stack[self._place :] if on else stack[stack.index(self) + 1 :]
        # by the base class's own push and pop: others may do more when they are entered
        for mode in reversed(above if on else [self, *above]):
            TorchFunctionMode.__exit__(mode, None, None, None)  # type: ignore[no-untyped-call]
        for mode in [self, *above] if on else above:
            TorchFunctionMode.__enter__(mode)  # type: ignore[no-untyped-call]

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
            for subscriber in self.subscribers:
                try:
                    subscriber.backward(_losses(*args, **kwargs))
                except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
                    self.failure = f"{type(error).__name__}: {error}"
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        for subscriber in self.subscribers:
            try:
                subscriber.called(func, args, kwargs, out)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
                self.failure = f"{type(error).__name__}: {error}"
        return out


class _Pause(ModuleHook):
    """Takes the mode off before a compiled module runs, or puts it on again behind it."""

    def __init__(self, into: HookOwner, mode: FunctionMode, behind: bool) -> None:
        super().__init__("", into)
        self.mode, self.behind = mode, behind

    def __call__(self, module: nn.Module, *given: Any) -> None:
        if not torch.compiler.is_compiling():
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
