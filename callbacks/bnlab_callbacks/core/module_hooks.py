"""Hooks on modules that are off them while nobody listens: a call of one that returns at once costs 3 to 6 µs."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.hooks import RemovableHandle

from bnlab_callbacks.core.forward_order import Gate


class ModuleHooks:
    """Hooks that share a gate, and can be taken off their modules and put on again.

    Hooks that a compiler has seen stay on: its code does not heed hooks that come and go, but it heeds the gate.

    Args:
        gate: what the hooks look at; they set its `compiled` when a compiler runs them.
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
        if not self._gate.compiled:
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
