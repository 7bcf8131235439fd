"""A study's results in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnlab.studies.state import State


def counts(state: State) -> str:
    """`3 of 36 done, 2 running, 1 failed`."""
    failed = len(state.failed)
    parts = [f"{len(state.results) - failed} of {state.total} done", f"{len(state.running)} running"]
    return ", ".join([*parts, f"{failed} failed"] if failed else parts)


def in_words(result: Mapping[str, Any]) -> str:
    """A result on one line."""
    outcome = result["outcome"]
    if outcome["status"] == "failed":
        return str(outcome.get("error"))
    parts = [f"test accuracy {percent(result.get('test_acc'))}", f"{outcome['epochs']} epochs"]
    if outcome["status"] == "diverged":
        parts.append(f"diverged at step {outcome.get('step')}")
    if result.get("seconds_per_epoch") is not None:
        parts.append(f"{result['seconds_per_epoch']:.2f} s each")
    return ", ".join(parts)


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "none" if value is None else f"{100 * value:.2f} %"


def duration(seconds: float) -> str:
    """Seconds for people: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def table(rows: list[list[str]]) -> list[str]:
    """Rows as lines with their columns one under the other, two spaces apart."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def results_table(state: State) -> list[str]:
    """The study's results as lines of a table."""
    rows = [["run", "outcome", "test accuracy", "epochs", "s/epoch"]]
    for name, result in sorted(state.results.items()):
        seconds = result.get("seconds_per_epoch")
        rows.append(
            [
                name,
                result["outcome"]["status"],
                percent(result.get("test_acc")),
                str(result["outcome"].get("epochs") or 0),
                "none" if seconds is None else f"{seconds:.2f}",
            ]
        )
    return table(rows)


def end(state: State) -> list[str]:
    """The end of a study: its results, the logs of what failed, and what to do next."""
    lines = ["", *results_table(state), ""]
    for name, result in state.failed.items():
        tail = str(result["outcome"].get("log_tail") or "(empty)").splitlines()
        lines += [
            f"{name} failed; the end of {state.folder / name / 'log.txt'}:",
            *(f"    {line}" for line in tail),
            "",
        ]
    if state.failed:
        again = "the same command with --retry_failed tries them again, from their last checkpoints"
        lines.append(f"{len(state.failed)} of {state.total} runs failed; {again}")
    return [
        *lines,
        f"tables and figures   bnlab report {state.folder}",
        f"the runs' events     tensorboard --logdir {state.folder}",
    ]
