"""The time that a diagnostic takes, measured by itself, and the distance of its records that keeps to a budget."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Overhead:
    """Seconds spent on a diagnostic, and seconds of the training steps that it was part of.

    A training step lasts from the start of its batch to the start of the next one, or to where validation or the end of
    the epoch begins. On accelerators only the host's time is seen.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        self.total = 0.0
        self._steps = 0
        self.records = 0
        self._began: float | None = None

    def begin_step(self) -> None:
        """A training step starts, and the one before it ends."""
        self._began = self.end_step()

    def end_step(self) -> float:
        """A training step ends, if one has begun; gives the present time."""
        now = perf_counter()
        if self._began is not None:
            self.total += now - self._began
            self._steps += 1
            self._began = None
        return now

    def add(self, seconds: float) -> None:
        """Seconds that went into the diagnostic; between steps (at the end of an epoch) they lengthen training."""
        self.spent += seconds
        if self._began is None:
            self.total += seconds

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Add the time that the context takes."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(perf_counter() - start)

    def count_record(self) -> None:
        """One more step was recorded."""
        self.records += 1

    @property
    def fraction(self) -> float:
        """Share of the training time that went into the diagnostic."""
        return self.spent / self.total if self.total else 0.0

    def pause(self, budget: float) -> int:
        """Steps to wait before the next record, so that with it the fraction is at most `budget`."""
        now = 0.0 if self._began is None else perf_counter() - self._began
        steps, total = self._steps + (self._began is not None), self.total + now
        if not self.records or not steps:
            return 1
        plain_step = max(total - self.spent, 1e-9) / steps
        with_next = self.spent * (1 + 1 / self.records)
        return max(1, math.ceil((with_next / budget - total) / plain_step))
