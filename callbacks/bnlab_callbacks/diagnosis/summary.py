"""The summary of a diagnosis: a table of one screen, and the content of diagnosis.json.

Imports neither torch nor Lightning, so that reading commands start at once.
"""

import json
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from bnlab_callbacks.core.naming import with_new_names
from bnlab_callbacks.diagnosis.findings import NOTHING_OF_THE_KIND, Finding, worst
from bnlab_callbacks.diagnosis.judging.causes import headline
from bnlab_callbacks.diagnosis.observations import Observation

SCHEMA = 1
FILE = "diagnosis.json"
FEWEST_STEPS = 10  # for a verdict
_ROWS = 24
_COLUMNS = ("‖g‖/‖w‖", "‖Δw‖/‖w‖", "mean", "std", "saturated", "dead")


def verdict_of(findings: Sequence[Finding], reason: str | None = None) -> str:
    """`failing` or `warning`, after what lasts; else `healthy`, or `unknown` where there is a reason for no verdict."""
    return worst(findings) or ("healthy" if reason is None else "unknown")


def why_unknown(steps: int, losses: int) -> str | None:
    """Why a run that shows nothing wrong has no verdict; None where it has one.

    Args:
        steps: optimizer steps that were seen, with gradients.
        losses: steps whose loss was seen.
    """
    if not steps:
        return "no optimizer step was seen"
    if not losses:
        return "no loss was seen"
    if steps < FEWEST_STEPS:
        return f"{steps} step{'s are' if steps > 1 else ' is'} too few to tell (below {FEWEST_STEPS})"
    return None


def to_dict(
    findings: Sequence[Finding],
    last: Observation | None,
    steps: int,
    not_checked: Mapping[str, str],
    reason: str | None = None,
    order: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of `diagnosis.json`, strict JSON (a number that is not finite is a text).

    `schema`: 1; `verdict`: failing, warning, healthy or unknown; `reason`: why it is unknown, else null; `steps`:
    optimizer steps seen; `cause`: name of the finding that is most likely the cause, else null, and what it `explains`;
    `findings`: see `Finding`; `not_checked`: rule → why; `layers`: layer → column → value at the last recorded step,
    `step`; `outputs_of`: layer of weights → the activation functions behind it.

    Args:
        findings: as `by_cause` gives them.
        last: the last observation that is not of losses alone.
        steps: optimizer steps seen.
        not_checked: rule → why.
        reason: for no verdict; see `why_unknown`.
        order: names of the net's modules in order of definition, to find the outputs of each layer.
    """
    verdict = verdict_of(findings, reason)
    cause = findings[0] if verdict in ("failing", "warning") else None
    return {
        "schema": SCHEMA,
        "verdict": verdict,
        "reason": reason if verdict == "unknown" else None,
        "steps": steps,
        "cause": cause and cause.name,
        "explains": list(cause.explains) if cause else [],
        "findings": [finding.to_dict() for finding in findings],
        "not_checked": dict(not_checked),
        "step": None if last is None else last.step,
        "layers": {} if last is None else _layers(last),
        "outputs_of": {} if last is None else _outputs_of(last, order),
    }


def read(file: Path) -> dict[str, Any]:
    """The content of a `diagnosis.json`; everything that `lines` shows is there.

    Raises:
        ValueError: the file cannot be read, or is of another schema.
    """
    try:
        content = with_new_names(json.loads(file.read_text(encoding="utf-8")))
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
    out = [_first_line(content)]
    findings = [Finding.from_dict(one) for one in content["findings"]]
    for finding in findings:
        over = f" (over since step {finding.ended})" if finding.ended is not None else ""
        line = f"  explained by it: {finding.without_advice}" if finding.cause else headline(findings, finding)
        out.append(f"  {line}{over}")
    reasons = {rule: reason for rule, reason in content["not_checked"].items() if reason != NOTHING_OF_THE_KIND}
    for reason in dict.fromkeys(reasons.values()):
        rules = ", ".join(rule.replace("_", " ") for rule, why in reasons.items() if why == reason)
        out.append(f"  not checked: {rules} ({reason})")
    return out + _table(content, {finding.layer for finding in findings if finding.ended is None})


def brief(content: dict[str, Any]) -> list[str]:
    """The same at the end of a run: one line where nothing is wrong."""
    whole = lines(content)
    if content["verdict"] not in ("healthy", "unknown"):
        return whole
    others = len(content["findings"])
    more = f" ({others} finding{'s are' if others > 1 else ' is'} over, or a note)" if others else ""
    return [whole[0] + more]


def _first_line(content: Mapping[str, Any]) -> str:
    reason = f": {content['reason']}" if content.get("reason") else ""
    return (
        f"diagnosis after {content['steps']} step{'' if content['steps'] == 1 else 's'}: {content['verdict']}{reason}"
    )


def _layers(last: Observation) -> dict[str, dict[str, float | str]]:
    moves = {layer: 10**value for layer, value in last.of("update_ratio").items() if value < 300}
    outputs = (last.of(quantity) for quantity in ("act_mean", "act_std", "sat_frac", "dead_frac"))
    rows: dict[str, dict[str, float | str]] = {}
    for column, values in zip(_COLUMNS, (last.relative_gradients(), moves, *outputs), strict=True):
        for layer, value in values.items():
            rows.setdefault(layer, {})[column] = value if math.isfinite(value) else str(value)
    return rows


def _outputs_of(last: Observation, order: Sequence[str]) -> dict[str, list[str]]:
    """Layers of weights → the activation functions between them and the next one, both in order of definition."""
    places = {name: place for place, name in enumerate(order)}

    def place(layer: str) -> int:
        return places.get(layer, places.get(layer.rpartition(".")[0], -1))  # `lstm.weight_ih_l0` lies in `lstm`

    def place_of_output(output: str) -> int:
        module, _, turn = output.rpartition(".")
        # a module's second call; what is called in a module has no place among those within it
        return places.get(output, places.get(module, -1) if turn.isdecimal() else -1)

    starts = sorted((place(layer), layer) for layer in last.of("weight_rms") if place(layer) >= 0)
    found: dict[str, list[str]] = {}
    for output in last.of("act_std"):
        before = [layer for start, layer in starts if start < place_of_output(output)]
        if before:
            found.setdefault(before[-1], []).append(output)
    return found


def _table(content: Mapping[str, Any], named: Set[str | None]) -> list[str]:
    """A row for each layer, with its outputs', in order of execution; of many, the worst first."""
    layers, outputs_of = content["layers"], content.get("outputs_of", {})
    if not layers:
        return []
    rows: dict[str, Mapping[str, float | str]] = {}
    taken = {output for outputs in outputs_of.values() for output in outputs}
    for layer in layers:
        if layer in taken:
            continue
        first, *more = outputs_of.get(layer, [""])
        rows[f"{layer} → {first}" if first else layer] = {**layers[layer], **layers.get(first, {})}
        rows |= {f"  → {output}": layers[output] for output in more if output in layers}
    out = [f"  at step {content['step']}:"]
    shown = list(rows)
    if len(rows) > _ROWS:
        shown = sorted(rows, key=lambda row: _badness(row, rows[row], named))[:_ROWS]
        out = [f"  at step {content['step']}, the {_ROWS} worst of {len(rows)} layers:"]
    width = max(len(row) for row in [*shown, "layer"])
    used = [column for column in _COLUMNS if any(column in rows[row] for row in shown)]
    out.append("  " + "layer".ljust(width) + "".join(column.rjust(11) for column in used))
    for row in shown:
        out.append("  " + row.ljust(width) + "".join(_cell(column, rows[row].get(column)).rjust(11) for column in used))
    return out


def _badness(row: str, values: Mapping[str, float | str], named: Set[str | None]) -> tuple[bool, bool, float, float]:
    """What rows are sorted by: named in a finding, not finite, most units dead or saturated, smallest gradient."""
    gradient, *_, saturated, dead = (values.get(column) for column in _COLUMNS)
    shares = [share for share in (saturated, dead) if isinstance(share, float)]
    return (
        not set(row.strip(" →").split(" → ")) & named,
        not any(isinstance(value, str) for value in values.values()),
        -max(shares, default=0.0),
        gradient if isinstance(gradient, float) else math.inf,
    )


def _cell(column: str, value: float | str | None) -> str:
    if value is None:
        return "·"
    if isinstance(value, str):
        return value
    return f"{value:.0%}" if column in _COLUMNS[4:] else f"{value:.2g}"
