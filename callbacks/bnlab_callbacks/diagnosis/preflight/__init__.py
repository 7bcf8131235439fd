"""Checks of one batch before training, against theory."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlab_callbacks.diagnosis.preflight.lightning_preflight import preflight
    from bnlab_callbacks.diagnosis.preflight.look import Preflight

__all__ = ["Preflight", "preflight"]


def __getattr__(name: str) -> Any:
    if name == "preflight":  # which alone needs Lightning
        from bnlab_callbacks.diagnosis.preflight.lightning_preflight import preflight

        return preflight
    if name == "Preflight":
        from bnlab_callbacks.diagnosis.preflight.look import Preflight

        return Preflight
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
