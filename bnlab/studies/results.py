"""`result.json`, written when a run of a study has ended, and the records that tell how far a run is."""

import json
import os
import signal
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bnlab.files.durable_files import write_durably
from bnlab.files.yaml_file import mapping_or_empty
from bnlab_callbacks import last_record, read_records

SCHEMA = 1
FILE, LOG = "result.json", "log.txt"
_LOG_LINES, _LOG_BYTES = 20, 8192
_TAIL_BYTES = 4096

# what result.json takes over from the run.yaml of `bnlab fit`
_FROM_RECORD = ("outcome", "val_acc", "train_loss", "samples", "parameters", "hardware", "precision", "versions", "git")


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result in a run's folder; None while there is none, or one that this version cannot read."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return None
    outcome = content.get("outcome")
    return content if isinstance(outcome, dict) and isinstance(outcome.get("status"), str) else None


def write_result(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a result whole or not at all, as strict JSON: NaN and infinities become null."""
    strict = json.loads(json.dumps({"schema": SCHEMA, **content}), parse_constant=lambda _: None)
    write_durably(folder / FILE, json.dumps(strict, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def of_ended_run(folder: Path, task: Mapping[str, Any], tested: Mapping[str, float]) -> dict[str, Any]:
    """The result of a run that `bnlab fit` ended and `bnlab test` tested, with `test_acc` and `test_loss`."""
    return _result(folder, task, mapping_or_empty(folder / "run.yaml"), tested)


def of_failed_run(folder: Path, task: Mapping[str, Any], status: int, reason: str = "") -> dict[str, Any]:
    """The result of a run whose process ended with a status other than 0; the log tells the reason if nobody does."""
    record = mapping_or_empty(folder / "run.yaml")
    known = record.get("outcome") or {}
    tail = log_tail(folder)
    outcome = {
        "status": "failed",
        "epochs": known.get("epochs"),
        "steps": known.get("steps"),
        "error": reason or _error(status, tail),
        "log_tail": tail,
    }
    return _result(folder, task, {**record, "outcome": outcome}, {})


def _result(
    folder: Path, task: Mapping[str, Any], record: Mapping[str, Any], tested: Mapping[str, float]
) -> dict[str, Any]:
    seconds = epoch_seconds(folder)
    return {
        **task["identity"],
        **{name: record.get(name) for name in _FROM_RECORD},
        "seconds_per_epoch": sum(seconds) / len(seconds) if seconds else record.get("seconds_per_epoch"),
        "argv": ["bnlab", *task["words"]],
        "study": task["study"],
        "test_acc": tested.get("test_acc"),
        "test_loss": tested.get("test_loss"),
        "started": record.get("started"),
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def epoch_seconds(folder: Path) -> list[float]:
    """`time/epoch_s` of each epoch that was timed as a whole; the last value where an epoch was trained twice."""
    path = folder / "records.csv"
    if not path.is_file():
        return []
    seconds: dict[int, float] = {}
    partial: set[int] = set()
    try:
        for row in read_records(path):
            if row.quantity == "time/epoch_s":
                seconds[row.epoch] = row.value
            elif row.quantity == "time/partial_epoch":
                partial.add(row.epoch)
    except (OSError, ValueError):  # a damaged table is no reason to lose the run; run.yaml knows the mean
        return []
    return [value for epoch, value in sorted(seconds.items()) if epoch not in partial]


def epochs_begun(folder: Path) -> int:
    """The number of epochs that a run has begun, from the last row of its records; 0 before the first record."""
    try:
        row = last_record(folder / "records.csv")
    except OSError:
        return 0
    return row.epoch + 1 if row else 0


def log_tail(folder: Path) -> str:
    """The last lines of a run's log."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-_LOG_LINES:])


def _error(status: int, tail: str) -> str:
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        hint = "; the system does this when memory runs out: try fewer --jobs" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    last = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "")
    return last or f"its process ended with status {status} and no message"
