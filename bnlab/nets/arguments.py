"""Checks of arguments that the modules of this package share."""

from collections.abc import Sequence

from bnlab.errors import InputError


def require_choice(argument: str, value: object, choices: Sequence[str]) -> None:
    """Raise InputError, listing the valid names, unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{argument} {value!r} is unknown. Choose one of: {', '.join(choices)}.")


def require_at_least(argument: str, value: int, least: int) -> None:
    """Raise InputError unless `value` is `least` or more."""
    if value < least:
        raise InputError(
            f"{argument} is {value}, but must be {least} or more. "
            f"It comes from the data set: check that its images and labels are what you meant to load."
        )
