"""Signals that ask a run to stop: noted at once, heeded between two batches."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_SECOND = b"\nbnlab: stopping once this batch is done; Ctrl-C again stops at once.\n"


class StopSignals:
    """Notes SIGTERM and the first SIGINT while it is watching; a second SIGINT is a KeyboardInterrupt, as always.

    In threads other than the main one, which get no signals, it does nothing.

    Args:
        also: another signal that is noted.
    """

    def __init__(self, also: signal.Signals | None = None) -> None:
        self.watched = (signal.SIGTERM, signal.SIGINT) if also is None else (signal.SIGTERM, signal.SIGINT, also)
        self.received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def watch(self) -> None:
        """Begin to note signals."""
        self.received = None
        if threading.current_thread() is threading.main_thread() and not self._handlers:
            self._handlers = {which: signal.signal(which, self._note) for which in self.watched}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.received is not None:
                raise KeyboardInterrupt
            os.write(2, _SECOND)
        self.received = signal.Signals(number)

    def release(self) -> None:
        """Put back the handlers that were there before."""
        handlers, self._handlers = self._handlers, {}
        for which, handler in handlers.items():
            if signal.getsignal(which) == self._note:  # Lightning ignores SIGINT while it shuts down
                signal.signal(which, handler)
