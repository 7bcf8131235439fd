"""The summary of a diagnosis: a table of one screen, and the content of diagnosis.json.

Imports neither torch nor Lightning, so that reading commands start at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnlab_callbacks.diagnosis.findings import NOTHING_OF_THE_KIND, Finding, worst
from bnlab_callbacks.diagnosis.observations import Observation

SCHEMA = 1
FILE = "diagnosis.json"
_ROWS = 24
_COLUMNS = ("‖g‖/‖w‖", "‖Δw‖/‖w‖", "mean", "std", "saturated", "dead")


def verdict_of(findings: Sequence[Finding]) -> str:
    """`failing`, `warning` or `healthy`, after what lasts."""
    return worst(findings) or "healthy"


def to_dict(
    findings: Sequence[Finding], last: Observation | None, steps: int, not_checked: Mapping[str, str]
) -> dict[str, Any]:
    """The content of `diagnosis.json`, strict JSON (a number that is not finite is a text).

    `schema`: 1; `verdict`: failing, warning or healthy; `steps`: optimizer steps seen; `findings`: see `Finding`;
    `not_checked`: rule → why; `layers`: layer → column → value at the last recorded step, `step`.
    """
    return {
        "schema": SCHEMA,
        "verdict": verdict_of(findings),
        "steps": steps,
        "findings": [finding.to_dict() for finding in findings],
        "not_checked": dict(not_checked),
        "step": None if last is None else last.step,
        "layers": {} if last is None else _layers(last),
    }


def read(file: Path) -> dict[str, Any]:
    """The content of a `diagnosis.json`; everything that `lines` shows is there.

    Raises:
        ValueError: the file cannot be read, or is of another schema.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        schema = content["schema"]
        if schema == SCHEMA:
            lines(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is no diagnosis that can be read ({type(error).__name__}: {error}).") from error
    if schema != SCHEMA:
        raise ValueError(f"{file} has schema {schema!r}; this version reads {SCHEMA}.")
    return dict(content)


def lines(content: dict[str, Any]) -> list[str]:
    """The table and the verdict, for a screen."""
    out = [f"diagnosis after {content['steps']} steps: {content['verdict']}"]
    found = map(Finding.from_dict, content["findings"])
    out += [f"  {one.line}" + (f" (over since step {one.ended})" if one.ended is not None else "") for one in found]
    reasons = {rule: reason for rule, reason in content["not_checked"].items() if reason != NOTHING_OF_THE_KIND}
    for reason in dict.fromkeys(reasons.values()):
        rules = ", ".join(rule.replace("_", " ") for rule, why in reasons.items() if why == reason)
        out.append(f"  not checked: {rules} ({reason})")
    out += _table(content["layers"], content["step"])
    return out


def _layers(last: Observation) -> dict[str, dict[str, float | str]]:
    moves = {layer: 10**value for layer, value in last.of("update_ratio").items() if value < 300}
    outputs = (last.of(quantity) for quantity in ("act_mean", "act_std", "sat_frac", "dead_frac"))
    rows: dict[str, dict[str, float | str]] = {}
    for column, values in zip(_COLUMNS, (last.relative_gradients(), moves, *outputs), strict=True):
        for layer, value in values.items():
            rows.setdefault(layer, {})[column] = value if math.isfinite(value) else str(value)
    return rows


def _table(layers: Mapping[str, Mapping[str, float | str]], step: int | None) -> list[str]:
    if not layers:
        return []
    width = max(len(layer) for layer in [*layers, "layer"])
    used = [column for column in _COLUMNS if any(column in row for row in layers.values())]
    out = [f"  at step {step}:", "  " + "layer".ljust(width) + "".join(column.rjust(11) for column in used)]
    for layer, row in list(layers.items())[:_ROWS]:
        out.append("  " + layer.ljust(width) + "".join(_cell(column, row.get(column)).rjust(11) for column in used))
    if len(layers) > _ROWS:
        out.append(f"  … and {len(layers) - _ROWS} more")
    return out


def _cell(column: str, value: float | str | None) -> str:
    if value is None:
        return "·"
    if isinstance(value, str):
        return value
    return f"{value:.0%}" if column in _COLUMNS[4:] else f"{value:.2g}"
