"""The decorator that keeps training alive when a diagnostic fails."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast


class CanFail(Protocol):
    """A diagnostic that can be off."""

    @property
    def active(self) -> bool:
        """Whether it is at work."""

    def fail(self, reason: str) -> None:
        """Take note of an error: say it once, and be off."""


P = ParamSpec("P")
D = TypeVar("D", bound=CanFail)


def keeps_training(method: Callable[Concatenate[D, P], None]) -> Callable[Concatenate[D, P], None]:
    """Make a method do nothing while its diagnostic is off, and an error in it a call of `fail`.

    >>> class Diagnostic:
    ...     active = True
    ...     def fail(self, reason):
    ...         print(reason)
    ...     @keeps_training
    ...     def measure(self):
    ...         1 / 0
    >>> Diagnostic().measure()
    ZeroDivisionError: division by zero
    """

    @wraps(method)
    def guarded(self: D, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.active:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            self.fail(f"{type(error).__name__}: {error}")

    return cast(Callable[Concatenate[D, P], None], guarded)
