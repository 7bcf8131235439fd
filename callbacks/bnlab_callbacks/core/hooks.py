"""Hooks on modules: a switch that they share, what they do in copies, and the order in which modules run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Gate:
    """A switch that hooks look at. Copies and pickles of a hooked module get a shut gate, so they record nothing.

    Attributes:
        open: whether hooks are to record.
        compiled: whether a compiler has seen the hooks.
    """

    def __init__(self) -> None:
        self.open = False
        self.compiled = False

    def __reduce__(self) -> tuple[type[Gate], tuple[()]]:  # for pickle and copy alike
        return Gate, ()


class HookOwner:
    """The owner of some hooks, which is what they share.

    Attributes:
        gate: open while the hooks are to record.
        spent: seconds that the hooks took; whoever reads them sets them back.
        failure: the last error in a hook.
    """

    def __init__(self) -> None:
        self.gate = Gate()
        self.spent = 0.0
        self.failure: str | None = None


class _Inert:
    """A hook in a copy of its module (an EMA, a pickle): it does nothing."""

    def __call__(self, module: nn.Module, *given: Any) -> None:
        pass


class ModuleHook:
    """A hook on one module, forward or before forward; an object, since closures cannot be pickled.

    Args:
        layer: the module's name.
        into: what it shares with its recorder's other hooks.
    """

    only_in_training = True  # whether calls in evaluation mode do not count

    def __init__(self, layer: str, into: HookOwner) -> None:
        self.layer = layer
        self.into = into

    def record(self, module: nn.Module, *given: Any) -> None:
        """Record one call, `given` what PyTorch gives to a hook behind the module; an error is noted."""
        raise NotImplementedError

    def __call__(self, module: nn.Module, *given: Any) -> None:
        compiling = torch.compiler.is_compiling()
        if compiling:
            self.into.gate.compiled = True
        if not self.into.gate.open or (self.only_in_training and not module.training):
            return
        if compiling:
            self.record(module, *given)
            return
        start = perf_counter()
        try:
            with torch._C.DisableTorchFunction():  # what a hook computes is nobody's to see
                self.record(module, *given)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            self.into.failure = f"{type(error).__name__} at {self.layer}: {error}"
        self.into.spent += perf_counter() - start

    def __reduce__(self) -> tuple[type[_Inert], tuple[()]]:
        return _Inert, ()


class ModuleHooks:
    """Hooks that share a gate, and are off their modules while nothing is recorded: a call costs 3 to 6 µs.

    Hooks that a compiler has seen stay on: its code does not heed hooks that come and go, but it heeds the gate.

    Args:
        gate: the hooks' own.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._register: list[Callable[[], RemovableHandle]] = []
        self._handles: list[RemovableHandle] = []

    def __bool__(self) -> bool:
        return bool(self._register)

    def add(self, register: Callable[[], RemovableHandle]) -> None:
        """Put a hook on with `register`."""
        self._register.append(register)
        self._handles.append(register())

    def put_on(self) -> None:
        """Put all hooks on, where they are not."""
        if not self._handles:
            self._handles = [register() for register in self._register]

    def take_off(self) -> None:
        """Take all hooks off until they are put on again."""
        if self._handles and not self._gate.compiled:
            self._remove_handles()

    def remove(self) -> None:
        """Take all hooks off and forget them; harmless when repeated."""
        self._gate.open = False
        self._remove_handles()
        self._register.clear()

    def _remove_handles(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _OrderHook(ModuleHook):
    """Notes that its module runs."""

    only_in_training = False
    into: ForwardOrder

    def record(self, module: nn.Module, *given: Any) -> None:
        self.into.names.append(self.layer)


class ForwardOrder(HookOwner):
    """Hooks on `modules`, given with their names, that see in which order these run while the gate is open."""

    def __init__(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.names: list[str] = []  # of the modules that ran
        self._handles = [module.register_forward_pre_hook(_OrderHook(name, self)) for name, module in modules]

    def remove(self) -> None:
        """Take the hooks off; harmless when repeated."""
        self.gate.open = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def sort(self, layers: Sequence[tuple[str, str]]) -> list[str]:
        """Sort layers, given as (layer, name of the module that holds it) in order of definition, by execution.

        A module that was not called itself (attention's `out_proj`, used by its parent) runs with its nearest ancestor
        that was; one without such an ancestor comes last.
        """
        first = {name: place for place, name in enumerate(dict.fromkeys(self.names))}

        def position(module: str) -> int:
            if module in first:
                return first[module]
            parent = module.rpartition(".")[0]
            # not the root: that it runs first tells nothing about a child that never ran
            return position(parent) if parent else len(first)

        return [layer for layer, _ in sorted(layers, key=lambda pair: position(pair[1]))]
