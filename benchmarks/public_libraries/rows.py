"""A row for each fit, as a line of JSON and in the table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Row:
    """One fit, or why there is none. Losses are means over the first and the last tenth of the batches."""

    library: str
    version: str = ""
    fit: str = ""
    steps: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    verdict: str = ""
    findings: list[dict[str, Any]] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)
    compared: bool = False  # it was made without the callbacks too
    repeatable: bool = False  # the run without callbacks leaves the same bits twice
    same_weights: bool = False
    same_random: bool = False
    seconds_without: float = 0.0
    seconds_with: float = 0.0
    error: str | None = None

    def to_json(self) -> str:
        """One line; a number that is not finite is a text."""
        return json.dumps(asdict(self), ensure_ascii=False, default=str)

    @classmethod
    def from_json(cls, line: str) -> Row:
        """The inverse of `to_json`."""
        return cls(**json.loads(line))

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """Findings graver than a note, those that are over too."""
        return [finding for finding in self.findings if finding["severity"] != "note"]


def table(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each fit and one for each of its findings."""
    for row in rows:
        yield _line(row)
        for one in row.findings:
            over = "" if one["ended"] is None else f", over since step {one['ended']}"
            where = f" at {one['layer']}" if one["layer"] else ""
            evidence = one["evidence"]
            yield f"    {one['severity']}: {one['name']}{where} since step {one['since']}{over}: {evidence}"


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """How many fits there were, with an alarm, with other bits; CPU time as a ratio."""
    made = [row for row in rows if row.verdict and not row.error]
    alarmed, failing = [row for row in made if row.alarms], [row for row in made if row.verdict == "failing"]
    yield (
        f"{len(made)} fits of {len({row.library for row in made})} libraries: {len(alarmed)} with a warning or worse "
        f"at some time, {sum(row.verdict != 'healthy' for row in made)} at the end, {len(failing)} failing at the end"
    )
    compared = [row for row in made if row.compared]
    if not compared:
        return
    repeatable = [row for row in compared if row.repeatable]
    other = [row for row in repeatable if not (row.same_weights and row.same_random)]
    yield (
        f"other weights or random states with the callbacks than without: {len(other)} of the {len(repeatable)} that "
        "are the same twice without them"
    )
    without, watched = (sum(getattr(row, name) for row in compared) for name in ("seconds_without", "seconds_with"))
    yield f"CPU time: {without:.0f} s without, {watched:.0f} s with ({watched / max(without, 1e-9):.2f} times)"


def _line(row: Row) -> str:
    head = f"{row.library} {row.version} {row.fit}".strip()
    if not row.verdict:
        return f"{head}: not run: {row.error}"
    losses = "" if row.first_loss is None else f", loss {row.first_loss:.4g} → {row.last_loss:.4g}"
    said = [row.verdict, f"{row.steps} steps{losses}"]
    if row.compared:
        bits = "not repeatable" if not row.repeatable else "same bits" if row.same_weights else "OTHER WEIGHTS"
        bits += "" if row.same_random or not row.repeatable else ", OTHER RANDOM STATE"
        said += [bits, f"{row.seconds_without:.1f} → {row.seconds_with:.1f} s"]
    return f"{head}: {'; '.join(said)}" + (f", {row.error}" if row.error else "")
