"""The common part of all callbacks: each can be off, and ends itself rather than the run when it fails."""

from __future__ import annotations

from bnlab_callbacks.core.lightning.names import Callback, rank_zero_warn


class Diagnostic(Callback):
    """A callback that never breaks a run.

    Attributes:
        active: whether it is at work in the present run.

    Args:
        enabled: False switches the callback off.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.active = False

    def close(self) -> None:
        """Leave nothing behind: no hooks, buffers or references. Harmless when repeated."""
        self.active = False

    def give_up(self, reason: str) -> None:
        """Say once why nothing more is done, and let training go on."""
        self.close()
        rank_zero_warn(f"{type(self).__name__} is off for the rest of this run: {reason}")

    def fail(self, reason: str) -> None:
        """Take note of an error in a method that `keeps_training`."""
        self.give_up(reason)
