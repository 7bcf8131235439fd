"""The forward passes of a model's modules: who begins one, and what comes of it."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from bnlab_callbacks.core.hooks import HookOwner, ModuleHook, ModuleHooks

Entered = Callable[[nn.Module], None]
Left = Callable[[nn.Module, Sequence[Any], Mapping[str, Any], Any], None]


class ForwardCalls:
    """Tells of every module whose forward pass begins or ends in the thread that opens it.

    Compiled modules and those of TorchScript, and what is in them, are left alone.

    Args:
        entered: is called with a module before its forward pass.
        left: is called with a module, its arguments and its output behind it; the output is None after an exception.
    """

    def __init__(self, entered: Entered, left: Left) -> None:
        owner = HookOwner()
        self._before, self._behind = _Before(owner, entered), _Behind(owner, left)
        self._hooks = ModuleHooks(owner.gate)
        self._known: set[int] = set()
        self._model: nn.Module | None = None
        self._modules = 0

    def watch(self, model: nn.Module) -> None:
        """Look for the model's modules; nothing is told before `open`."""
        self._model = model
        self._find()

    def forget(self) -> None:
        """Take all hooks off for good; harmless when repeated."""
        self.close()
        self._hooks.remove()
        self._known.clear()
        self._model = None
        self._modules = 0

    def open(self) -> None:
        """Put the hooks on, where they are not, and tell from now on."""
        if self._model is None:
            return
        if sum(1 for _ in self._model.modules()) != self._modules:
            self._find()  # some have joined late
        self._before.thread = self._behind.thread = threading.get_ident()
        self._hooks.put_on()

    def close(self) -> None:
        """Tell nothing more; the hooks stay on until `take_off`, for the next step that is recorded."""
        self._before.thread = self._behind.thread = 0

    def take_off(self) -> None:
        """Take the hooks off until `open`; harmless when repeated."""
        self._hooks.take_off()

    def _find(self) -> None:
        assert self._model is not None
        self._hooks.put_on()
        for module in _reachable(self._model):
            if id(module) not in self._known:
                self._known.add(id(module))
                self._hooks.add(partial(module.register_forward_pre_hook, self._before))
                behind = partial(module.register_forward_hook, self._behind, with_kwargs=True, always_call=True)
                self._hooks.add(behind)
        self._modules = sum(1 for _ in self._model.modules())
        self._hooks.take_off()


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` made it of a module."""
    return hasattr(type(module), "_opt_mod_attributes")


def _reachable(model: nn.Module) -> Iterator[nn.Module]:
    if is_compiled(model) or isinstance(model, torch.jit.ScriptModule):
        return
    yield model
    for child in model.children():
        yield from _reachable(child)


class _Before(ModuleHook):
    """One hook for all modules."""

    def __init__(self, owner: HookOwner, tell: Entered) -> None:
        super().__init__("", owner)
        self.tell = tell
        self.thread = 0

    def __call__(self, module: nn.Module, *given: Any) -> None:
        if not torch.compiler.is_compiling() and threading.get_ident() == self.thread:
            self.tell(module)


class _Behind(ModuleHook):
    """One hook for all modules."""

    def __init__(self, owner: HookOwner, tell: Left) -> None:
        super().__init__("", owner)
        self.tell = tell
        self.thread = 0

    def __call__(self, module: nn.Module, *given: Any) -> None:
        if not torch.compiler.is_compiling() and threading.get_ident() == self.thread:
            args, kwargs, output = given
            with torch._C.DisableTorchFunction():  # what is computed of them is nobody's to see
                self.tell(module, args, kwargs, output)
