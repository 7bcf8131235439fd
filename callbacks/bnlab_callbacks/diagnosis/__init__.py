"""Diagnosis of training: faults of a run, their layer, their first step, and what to try.

The names here are those that a rule of one's own is written with, and the result of a preflight. The function
`preflight` lies in the room of the same name, and in `bnlab_callbacks`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlab_callbacks.diagnosis.findings import Advice, Finding, Verdict
    from bnlab_callbacks.diagnosis.observations import History, Observation
    from bnlab_callbacks.diagnosis.preflight.look import Preflight
    from bnlab_callbacks.diagnosis.rules.rule import Rule
    from bnlab_callbacks.diagnosis.rules.spike_rules import LOSS_SPIKE

# imported when first used: a preflight needs torch, what reads diagnosis.json does not
_MODULES = {
    "Advice": "findings",
    "Finding": "findings",
    "History": "observations",
    "LOSS_SPIKE": "rules.spike_rules",
    "Observation": "observations",
    "Preflight": "preflight.look",
    "Rule": "rules.rule",
    "Verdict": "findings",
}
__all__ = ["LOSS_SPIKE", "Advice", "Finding", "History", "Observation", "Preflight", "Rule", "Verdict"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
