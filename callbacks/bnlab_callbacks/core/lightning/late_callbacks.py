"""Callbacks that join a Trainer when it begins its work, where it has none of their kind yet."""

from collections.abc import Sequence

from bnlab_callbacks.core.lightning.names import Callback, LightningModule, Trainer, rank_zero_info
from bnlab_callbacks.core.lightning.trainer import callbacks_of


class LateCallbacks(Callback):
    """Puts callbacks behind itself in the Trainer's list, without those whose kind is there already.

    Lightning's callback factories don't see the Trainer, and it refuses two callbacks with a state of one kind. So they
    wait here until the Trainer's first `setup`, when all others are known, those of `configure_callbacks` too. That is
    before states are restored from a checkpoint. Lightning goes through its list while this one makes it longer: the
    new ones get the same `setup` next.

    Args:
        origin: who asks for them, for the message.
        callbacks: what to add.
    """

    def __init__(self, origin: str, callbacks: Sequence[Callback]) -> None:
        self.origin = origin
        self._waiting = list(callbacks)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add them, once, and say which."""
        waiting, self._waiting = self._waiting, []
        callbacks = callbacks_of(trainer)
        new = [late for late in waiting if not any(isinstance(other, type(late)) for other in callbacks)]
        place = callbacks.index(self) + 1
        callbacks[place:place] = new
        if waiting:
            there = ", ".join(type(late).__name__ for late in waiting if late not in new)
            added = ", ".join(type(late).__name__ for late in new) or "nothing"
            rank_zero_info(f"{self.origin} adds {added}" + (f"; the Trainer has its own {there}" if there else ""))
