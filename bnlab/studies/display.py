"""What a study shows while it runs: one live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bnlab.studies.grid import Run
from bnlab.studies.progress import epochs_begun
from bnlab.studies.state import State
from bnlab.studies.wording import counts, duration, in_words

TimeLeft = Callable[[State], "float | None"]

_LIVE_S = 0.5  # between two refreshes
_PLAIN_S = 60.0  # between two lines that say how far the runs are
_MARKS = {"finished": "✓", "early": "✓", "diverged": "≠", "failed": "✗"}
_STYLES = {"failed": "red", "diverged": "yellow"}


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

    def ended(self, state: State, run: Run) -> None:
        """Print the run's outcome above the display."""
        result = state.results[run.name]
        status = result["outcome"]["status"]
        self._console.print(Text(f"{_MARKS[status]} {run.name}: {in_words(result)}", style=_STYLES.get(status, "")))

    def tick(self, state: State) -> None:
        """Draw anew, when it is time."""
        if time.monotonic() - self._drawn >= _LIVE_S:
            self._drawn = time.monotonic()
            self._live.update(self._picture(state), refresh=True)

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
