"""Callbacks that make real runs fail, for the configs of tests."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class Crash(Callback):
    """Raises in the second epoch; with `once`, a file, only while that is missing.

    Args:
        once: the file that the first crash leaves.
    """

    def __init__(self, once: str | None = None) -> None:
        self.once = once

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Raise, if it is time."""
        if trainer.current_epoch != 1 or (self.once is not None and Path(self.once).exists()):
            return
        if self.once is not None:
            Path(self.once).touch()
        raise RuntimeError("the second epoch is too much")
