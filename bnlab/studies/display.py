"""What a study shows while it runs: one live display on a terminal, plain lines elsewhere; and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bnlab.studies.conduct import State
from bnlab.studies.grid import Run
from bnlab.studies.progress import epochs_begun

TimeLeft = Callable[[State], "float | None"]

_LIVE_S = 0.5  # between two refreshes
_PLAIN_S = 60.0  # between two lines that say how far the runs are
_MARKS = {"finished": "✓", "early": "✓", "diverged": "≠", "failed": "✗"}


class PlainLines:
    """A line when a run starts, when it ends, and once a minute.

    Args:
        console: where they go.
        time_left: estimates the seconds until the study's end.
    """

    def __init__(self, console: Console, time_left: TimeLeft) -> None:
        self._console = console
        self._time_left = time_left
        self._said = time.monotonic()
        self._ended: list[tuple[Run, Mapping[str, Any]]] = []

    def started(self, run: Run) -> None:
        """Say which run starts."""
        self._say(f"start     {run.name}")

    def ended(self, run: Run, result: Mapping[str, Any]) -> None:
        """Keep it for the next look, when the state knows of it."""
        self._ended.append((run, result))

    def tick(self, state: State) -> None:
        """Say which runs have ended, and now and then how far the others are."""
        for run, result in self._ended:
            self._say(f"{result['outcome']['status']:<9} {run.name}: {in_words(result)} [{counts(state)}]")
        if self._ended or time.monotonic() - self._said >= _PLAIN_S:
            self._say(f"running   {self._line(state)}")
        self._ended = []

    def _line(self, state: State) -> str:
        runs = [f"{run.name} {epoch_text(state, run)}" for run in state.running.values()]
        left = self._time_left(state)
        return "; ".join([*runs, *([f"about {duration(left)} left"] if left else [])]) or "nothing"

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        self._console.print(f"{time.strftime('%H:%M:%S')}  {text}", highlight=False, markup=False, soft_wrap=True)


class LiveDisplay:
    """The whole study on a few lines that stay in place; runs that end are printed above. Takes what PlainLines does.

    Use it as a context manager.
    """

    def __init__(self, console: Console, time_left: TimeLeft) -> None:
        self._console = console
        self._time_left = time_left
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, run: Run) -> None:
        """Nothing to do: the next refresh shows it."""

    def ended(self, run: Run, result: Mapping[str, Any]) -> None:
        """Print the run's outcome above the display."""
        status = result["outcome"]["status"]
        self._console.print(Text(f"{_MARKS[status]} {run.name}: {in_words(result)}", style=_style(status)))

    def tick(self, state: State) -> None:
        """Draw anew, when it is time."""
        if time.monotonic() - self._drawn >= _LIVE_S:
            self._drawn = time.monotonic()
            self._live.update(self._picture(state), refresh=True)

    def _picture(self, state: State) -> Group:
        table = Table.grid(padding=(0, 2))
        for run in state.running.values():
            table.add_row("  ▸", run.name, epoch_text(state, run))
        for run in state.elsewhere:
            table.add_row("  ·", run.name, "another study works on it")
        left = self._time_left(state)
        line = counts(state) + (f", about {duration(left)} left" if left else "")
        return Group(Text(f"study {state.folder}: {line}", style="bold"), table)


def _style(status: str) -> str:
    return {"failed": "red", "diverged": "yellow"}.get(status, "")


def counts(state: State) -> str:
    """`3 of 36 done, 2 running, 1 failed`."""
    statuses = [result["outcome"]["status"] for result in state.results.values()]
    total = len(state.results) + len(state.waiting) + len(state.running)
    failed = statuses.count("failed")
    parts = [f"{len(statuses) - failed} of {total} done", f"{len(state.running)} running"]
    return ", ".join([*parts, *([f"{failed} failed"] if failed else [])])


def epoch_text(state: State, run: Run) -> str:
    """`epoch 7 of at most 100`, or that the run has not come so far."""
    epochs = epochs_begun(state.folder / run.name)
    return f"epoch {epochs} of at most {run.max_epochs}" if epochs else "starting"


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


def print_end(console: Console, state: State) -> None:
    """The table of results, the logs of what failed, and what to do next."""
    table = Table("run", "outcome", "test accuracy", "epochs", "s/epoch", box=None, pad_edge=False)
    for name, result in sorted(state.results.items()):
        seconds = result.get("seconds_per_epoch")
        table.add_row(
            name,
            result["outcome"]["status"],
            percent(result.get("test_acc")),
            str(result["outcome"].get("epochs") or 0),
            "none" if seconds is None else f"{seconds:.2f}",
        )
    console.print()
    console.print(table, soft_wrap=True)
    failed = {name: result for name, result in state.results.items() if result["outcome"]["status"] == "failed"}
    for name, result in failed.items():
        console.print(f"\n{name} failed; the end of {state.folder / name / 'log.txt'}:", markup=False, soft_wrap=True)
        for line in str(result["outcome"].get("log_tail") or "(empty)").splitlines():
            console.print(f"    {line}", highlight=False, markup=False, soft_wrap=True)
    console.print()
    if failed:
        again = "Try the failed ones again with the same command and --retry_failed"
        console.print(f"{len(failed)} of {len(state.results)} runs failed. {again}.", highlight=False, soft_wrap=True)
    console.print(f"tables and figures   bnlab report {state.folder}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"the runs' events     tensorboard --logdir {state.folder}", highlight=False, markup=False, soft_wrap=True
    )
