"""The order in which layers run, seen in the first recorded forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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

    def __deepcopy__(self, memo: dict[int, Any]) -> Gate:
        return Gate()

    def __reduce__(self) -> tuple[type[Gate], tuple[()]]:
        return Gate, ()


class _Probe:
    """A forward pre-hook that notes its module's name; an object, since lambdas and closures cannot be pickled."""

    def __init__(self, name: str, gate: Gate, seen: list[str]) -> None:
        self.name, self.gate, self.seen = name, gate, seen

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.gate.open:
            self.seen.append(self.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Probe:
        return _Probe(self.name, Gate(), [])

    def __reduce__(self) -> tuple[type[_Probe], tuple[str, Gate, list[str]]]:
        return _Probe, (self.name, Gate(), [])


class ForwardOrder:
    """Hooks on `modules` that see in which order they run, between `watch()` and `remove()`."""

    def __init__(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        self.gate = Gate()
        self._seen: list[str] = []
        self._handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(_Probe(name, self.gate, self._seen)) for name, module in modules
        ]

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
        first: dict[str, int] = {}
        for name in self._seen:
            first.setdefault(name, len(first))
        return [layer for layer, _ in sorted(layers, key=lambda pair: _position(pair[1], first))]


def _position(module: str, first: dict[str, int]) -> int:
    if module not in first:
        # not the root: that it runs first tells nothing about a child that never ran
        while module and module not in first:
            module = module.rpartition(".")[0]
        if not module:
            return len(first)
    return first[module]
