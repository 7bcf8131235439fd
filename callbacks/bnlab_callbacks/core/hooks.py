"""Hooks on modules: a switch that they share, what they do in copies, and the order in which modules run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class _Open:
    """The gates that are open, of all hooks in this process.

    Attributes:
        any: whether one is. Compiled code heeds this alone, so that it comes in two forms, whatever is recorded when.
    """

    def __init__(self) -> None:
        self.any = False
        self._gates: set[int] = set()

    def note(self, gate: Gate, is_open: bool) -> None:
        """A gate was opened or shut."""
        (self._gates.add if is_open else self._gates.discard)(id(gate))
        self.any = bool(self._gates)


_OPEN = _Open()


class Gate:
    """A switch that hooks look at. Copies and pickles of a hooked module get a shut gate, so they record nothing.

    Attributes:
        compiled: whether a compiler has seen the hooks.
    """

    def __init__(self) -> None:
        self._is_open = False
        self.compiled = False

    @property
    def open(self) -> bool:
        """Whether hooks are to record."""
        return self._is_open

    @open.setter
    def open(self, is_open: bool) -> None:
        if is_open != self._is_open:
            self._is_open = is_open
            _OPEN.note(self, is_open)

    def __del__(self) -> None:
        self.open = False

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
        number = next(_NUMBERS)
        _HOOKS[number] = self
        self._number = torch.tensor(number, device="cpu")

    def record(self, module: nn.Module, *given: Any) -> None:
        """Record one call, `given` what PyTorch gives to a hook behind the module; an error is noted."""
        raise NotImplementedError

    def tensors(self, module: nn.Module, *given: Any) -> list[Tensor] | None:
        """What a call in compiled code is recorded from, when that code runs; None for nothing."""
        return None

    def record_tensors(self, tensors: list[Tensor]) -> None:
        """Record a call in compiled code, from what `tensors` gave."""
        raise NotImplementedError

    def __call__(self, module: nn.Module, *given: Any) -> None:
        if torch.compiler.is_compiling():
            self.into.gate.compiled = True
            if _OPEN.any and (module.training or not self.only_in_training):
                tensors = self.tensors(module, *given)
                if tensors is not None:
                    _record(tensors, self._number)
        elif self.into.gate.open and (module.training or not self.only_in_training):
            self.run(partial(self.record, module, *given))

    def run(self, record: Callable[[], None]) -> None:
        """Record a call, if that is to be, and note what it costs."""
        if not self.into.gate.open:
            return
        start = perf_counter()
        try:
            with torch._C.DisableTorchFunction():  # what a hook computes is nobody's to see
                record()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            self.into.failure = f"{type(error).__name__} at {self.layer}: {error}"
        self.into.spent += perf_counter() - start

    def __reduce__(self) -> tuple[type[_Inert], tuple[()]]:
        return _Inert, ()


_NUMBERS = count()
_HOOKS: WeakValueDictionary[int, ModuleHook] = WeakValueDictionary()


@torch.library.custom_op("bnlab_callbacks::record", mutates_args=["number"])
def _record(tensors: list[Tensor], number: Tensor) -> None:
    """Let the hook of this number record: an operator that a compiler does not look into.

    The number is a tensor that the operator is said to change, so that it is neither left out nor compiled into the
    code: equal blocks share theirs.
    """
    hook = _HOOKS.get(int(number))
    if hook is not None:
        hook.run(partial(hook.record_tensors, tensors))


@_record.register_fake
def _(tensors: list[Tensor], number: Tensor) -> None:
    return None


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

    def tensors(self, module: nn.Module, *given: Any) -> list[Tensor] | None:
        return []

    def record_tensors(self, tensors: list[Tensor]) -> None:
        self.into.names.append(self.layer)


class ForwardOrder(HookOwner):
    """Hooks on `modules`, given with their names, that see in which order these run while the gate is open."""

    def __init__(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.names: list[str] = []  # of the modules that ran
        self._handles = [module.register_forward_pre_hook(_OrderHook(name, self)) for name, module in modules]

    def rest(self) -> None:
        """See nothing more; hooks that a compiler has seen stay on, since its code is made anew without them."""
        self.gate.open = False
        if not self.gate.compiled:
            self.remove()

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
