"""Checks of one batch before training, against theory."""

from bnlab_callbacks.diagnosis.preflight.run import Preflight, preflight

__all__ = ["Preflight", "preflight"]
