"""Checks of one batch before training, against theory."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlab_callbacks.diagnosis.preflight.lightning_preflight import preflight
    from bnlab_callbacks.diagnosis.preflight.look import Preflight

__all__ = ["Preflight", "preflight"]
_MODULES = {"Preflight": "look", "preflight": "lightning_preflight"}  # the second alone needs Lightning


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
