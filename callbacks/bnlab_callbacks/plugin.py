"""Callbacks by environment variable: `BNLAB_CALLBACKS=GradientMonitor,EpochTimer python train.py`, no code changed.

Lightning calls `callbacks_from_environment` for every Trainer of a process in whose environment this distribution is
installed (entry points `lightning.pytorch.callbacks_factory` and `pytorch_lightning.callbacks_factory`). So nothing
but the standard library is imported here until the variable says something.
"""

from __future__ import annotations

import ast
import inspect
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlab_callbacks.core.lightning.names import Callback

VARIABLE = "BNLAB_CALLBACKS"
_EXAMPLE = f'{VARIABLE}="GradientMonitor(every_n_steps=10),EpochTimer"'


def callbacks_from_environment() -> list[Callback]:
    """What the environment variable asks for, for one Trainer; an empty list where it is unset or empty.

    Raises:
        ValueError: what the variable says cannot be understood, or a callback refuses an argument.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return []
    from bnlab_callbacks.core.lightning.late_callbacks import LateCallbacks

    return [LateCallbacks(VARIABLE, make_callbacks(text))]


def make_callbacks(text: str) -> list[Callback]:
    """Callbacks from `Name,Name(argument=literal, …)`; nothing of it is run as code.

    Raises:
        ValueError: see `callbacks_from_environment`.
    """
    kinds = _kinds()
    wanted = [_parse(entry) for entry in _entries(text)]
    names = [name for name, _ in wanted]
    for name in names:
        if name not in kinds:
            raise _error(f"there is no callback {name!r}; there are: {', '.join(kinds)}.")
        if names.count(name) > 1:
            raise _error(f"{name} is there twice.")
    return [_make(kinds[name], arguments) for name, arguments in wanted]


def _kinds() -> dict[str, type[Callback]]:
    """The callbacks that the package offers, by name."""
    import bnlab_callbacks
    from bnlab_callbacks.core.lightning.names import Callback

    offered = {name: getattr(bnlab_callbacks, name) for name in bnlab_callbacks.__all__}
    return {name: kind for name, kind in offered.items() if isinstance(kind, type) and issubclass(kind, Callback)}


def _entries(text: str) -> list[ast.expr]:
    try:
        parsed = ast.parse(f"[{text}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _error(f"{text!r} cannot be read ({error}); write it like {_EXAMPLE}.") from None
    if not isinstance(parsed, ast.List) or not parsed.elts:
        raise _error(f"{text!r} is no list of callbacks; write it like {_EXAMPLE}.")
    return parsed.elts


def _parse(entry: ast.expr) -> tuple[str, dict[str, Any]]:
    """Name and arguments of one callback."""
    if isinstance(entry, ast.Name):
        return entry.id, {}
    if not isinstance(entry, ast.Call) or not isinstance(entry.func, ast.Name):
        raise _error(f"{ast.unparse(entry)!r} is no callback; write it like {_EXAMPLE}.")
    arguments: dict[str, Any] = {}
    if entry.args:
        raise _error(f"{ast.unparse(entry)}: give arguments by name, like {_EXAMPLE}.")
    for keyword in entry.keywords:
        try:
            if keyword.arg is None:  # **arguments
                raise ValueError
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            value = ast.unparse(keyword.value)
            raise _error(f"{entry.func.id}: {value} is no literal (texts need quotes); like {_EXAMPLE}.") from None
    return entry.func.id, arguments


def _make(kind: type[Callback], arguments: dict[str, Any]) -> Callback:
    known = list(inspect.signature(kind).parameters)
    for name in arguments:
        if name not in known:
            raise _error(f"{kind.__name__} has no argument {name!r}; it has: {', '.join(known)}.")
    try:
        return kind(**arguments)
    except (ValueError, TypeError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise _error(f"{kind.__name__}({given}): {error}") from error


def _error(message: str) -> ValueError:
    return ValueError(f"environment variable {VARIABLE}: {message}")
