"""The parts that all diagnostics of one run share: ranks, recorders, a function mode, and one copy off the device."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from torch import nn

from bnlab_callbacks.core.device import DeviceValues, bring_to_host
from bnlab_callbacks.core.function_mode import FunctionMode
from bnlab_callbacks.core.ranks import Ranks


class Joinable(Protocol):
    """A recorder that several readers can share; one with a method `hear(mode, model)` is given the function mode."""

    readers: list[Any]

    def __init__(self, model: nn.Module, ranks: Ranks) -> None: ...

    def join(self, reader: Any) -> None: ...

    def leave(self, reader: Any) -> None: ...


R = TypeVar("R", bound=Joinable)
Waiting = Callable[[], Iterable[DeviceValues]]


class SharedRecorders:
    """The recorders of one run, one of a kind: made for its first reader, gone with its last one.

    Attributes:
        mode: the run's one function mode, for all who want to see torch functions.

    Args:
        ranks: of the run.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.mode = FunctionMode()
        self._recorders: WeakValueDictionary[type, Joinable] = WeakValueDictionary()  # their readers hold them
        self._waiting: list[Waiting] = []

    def join(self, kind: type[R], reader: Any, model: nn.Module) -> R:
        """The recorder of this kind, made for `model` if there is none yet; it records for `reader` from now on."""
        recorder = self._recorders.get(kind)
        if not isinstance(recorder, kind) or not recorder.readers:
            recorder = self._recorders[kind] = kind(model, self.ranks)
            hear = getattr(recorder, "hear", None)
            if hear is not None:
                hear(self.mode, model)
        recorder.join(reader)
        return recorder

    def wait_with(self, waiting: Waiting) -> None:
        """Let `bring_to_host` also bring what `waiting` gives when it is called."""
        if waiting not in self._waiting:
            self._waiting.append(waiting)

    def wait_no_more(self, waiting: Waiting) -> None:
        """The opposite of `wait_with`; harmless when repeated."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def bring_to_host(self) -> None:
        """Bring all that waits on a device to the host, through one copy."""
        bring_to_host(chain.from_iterable(waiting() for waiting in self._waiting))
