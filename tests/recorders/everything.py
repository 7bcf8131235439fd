"""A reader that wants every step of every layer."""

from typing import Any

from bnlab_callbacks.core.records import Moment


class Everything:
    """Keeps what a recorder leaves.

    Args:
        changed_before: before which step the shares of changed weights are wanted.
    """

    exact_dead = False
    update_ratio = True
    vectors = False

    def __init__(self, changed_before: int = 0) -> None:
        self.changed_before = changed_before
        self.numbered: dict[str, str] = {}
        self.steps: list[Any] = []

    def due(self, moment: Moment, stream: str = "") -> bool:
        return True

    def mark(self, moment: Moment, stream: str = "") -> None:
        pass

    def wants(self, layer: str) -> bool:
        return True

    def take(self, moment: Moment, left: Any, seconds: float) -> None:
        self.steps.append(left)

    def recorder_failed(self, reason: str) -> None:
        raise AssertionError(reason)
