"""A study in words: the live display on a terminal, plain lines elsewhere, and the tables at its end."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bnlab.studies.grid import Run
from bnlab.studies.results import epochs_begun
from bnlab.studies.study import State

TimeLeft = Callable[[State], "float | None"]  # an estimate of the seconds until the study's end

_LIVE_S = 0.5  # between two refreshes
_PLAIN_S = 60.0  # between two lines that say how far the runs are
_MARKS = {"finished": "✓", "early": "✓", "diverged": "≠", "failed": "✗"}
_STYLES = {"failed": "red", "diverged": "yellow"}


class PlainLines:
    """A line when a run starts, when it ends, and once a minute."""

    def __init__(self, console: Console, time_left: TimeLeft) -> None:
        self._console = console
        self._time_left = time_left
        self._said = time.monotonic()

    def started(self, run: Run) -> None:
        """Say which run starts."""
        self._say(f"start     {run.name}")

    def ended(self, state: State, run: Run) -> None:
        """Say how a run has ended, and how far the study is."""
        result = state.results[run.name]
        left = self._time_left(state)
        rest = f", about {duration(left)} left" if left else ""
        self._say(f"{result['outcome']['status']:<9} {run.name}: {in_words(result)}  [{counts(state)}{rest}]")

    def tick(self, state: State) -> None:
        """Say now and then how far the runs are."""
        if time.monotonic() - self._said >= _PLAIN_S:
            runs = "; ".join(f"{name} {how_far(state, name)}" for name in state.running)
            self._say(f"running   {runs or 'nothing; another study has the rest'}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        print_text(self._console, f"{time.strftime('%H:%M:%S')}  {text}")


class LiveDisplay(Live):
    """The whole study on a few lines that stay in place, runs that end above them; takes what PlainLines does."""

    def __init__(self, console: Console, time_left: TimeLeft) -> None:
        super().__init__(console=console, auto_refresh=False, transient=True)
        self._time_left = time_left
        self._drawn = 0.0

    def started(self, run: Run) -> None:
        """Nothing to do: the next refresh shows it."""

    def ended(self, state: State, run: Run) -> None:
        """Print the run's outcome above the display."""
        result = state.results[run.name]
        status = result["outcome"]["status"]
        self.console.print(Text(f"{_MARKS[status]} {run.name}: {in_words(result)}", style=_STYLES.get(status, "")))

    def tick(self, state: State) -> None:
        """Draw anew, when it is time."""
        if time.monotonic() - self._drawn >= _LIVE_S:
            self._drawn = time.monotonic()
            self.update(self._picture(state), refresh=True)

    def _picture(self, state: State) -> Group:
        table = Table.grid(padding=(0, 2))
        for name in state.running:
            table.add_row("  ▸", name, how_far(state, name))
        for name in sorted(state.elsewhere):
            table.add_row("  ·", name, "another study works on it")
        left = self._time_left(state)
        line = counts(state) + (f", about {duration(left)} left" if left else "")
        return Group(Text(f"study {state.folder}: {line}", style="bold"), table)


def how_far(state: State, name: str) -> str:
    """`epoch 7 of at most 100`, or that the run has not come so far."""
    epochs = epochs_begun(state.folder / name)
    return f"epoch {epochs} of at most {state.running[name].run.max_epochs}" if epochs else "starting"


def print_text(console: Console, text: str = "") -> None:
    """Print text as it is: no markup, no colours, no lines broken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


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


def end(state: State) -> list[str]:
    """The end of a study: its results, the logs of what failed, and what to do next."""
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
    lines = ["", *table(rows), ""]
    for name, result in state.failed.items():
        tail = str(result["outcome"].get("log_tail") or "(empty)").splitlines()
        log = state.folder / name / "log.txt"
        lines += [f"{name} failed; the end of {log}:", *(f"    {line}" for line in tail), ""]
    if state.failed:
        again = "the same command with --retry_failed tries them again, from their last checkpoints"
        lines.append(f"{len(state.failed)} of {state.total} runs failed; {again}")
    return [
        *lines,
        f"tables and figures   bnlab report {state.folder}",
        f"the runs' events     tensorboard --logdir {state.folder}",
    ]
