"""The lines, displays and tables that a person sees of a study."""

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bnlab.studies.display import LiveDisplay, PlainLines, duration, end, in_words, table
from bnlab.studies.study import Running, State
from tests.studies.grids import runs_of

DONE: dict[str, Any] = {"outcome": {"status": "early", "epochs": 61}, "test_acc": 0.98224, "seconds_per_epoch": 1.634}
DIVERGED = {"outcome": {"status": "diverged", "epochs": 1, "step": 9}, "test_acc": 0.1, "seconds_per_epoch": None}
FAILED = {
    "outcome": {"status": "failed", "epochs": None, "error": "ValueError: [no]", "log_tail": "a\nValueError: [no]"}
}


@pytest.fixture
def state(tmp_path: Path) -> State:
    """One run of each kind: done, diverged, failed, running, elsewhere."""
    done, diverged, failed, running, waiting = runs_of(seeds=(0, 1, 2, 3, 4), batch_norm=(True,))
    results = {done.name: DONE, diverged.name: DIVERGED, failed.name: FAILED}
    made = State(tmp_path, [waiting], results=results, elsewhere={waiting.name})
    made.running[running.name] = Running(running, time.monotonic(), 0)
    folder = tmp_path / running.name
    folder.mkdir(parents=True)
    (folder / "records.csv").write_text("step,epoch,wall_time,quantity,layer,value\n62,6,1.0,lr,,0.1\n")
    return made


def test_plain_lines_say_what_starts_and_how_it_ends(state: State) -> None:
    text = io.StringIO()
    lines = PlainLines(Console(file=text, width=20), lambda _: 3900.0)
    done, _, failed, running, _ = runs_of(seeds=(0, 1, 2, 3, 4), batch_norm=(True,))
    lines.started(running)
    lines.ended(state, done)
    lines.ended(state, failed)
    lines.tick(state)
    stamps, said = zip(*[line.split("  ", 1) for line in text.getvalue().splitlines()], strict=True)
    assert all(len(stamp) == len("12:00:00") for stamp in stamps)
    rest = "[2 of 5 done, 1 running, 1 failed, about 65 min left]"
    assert list(said) == [
        "start     mlp_relu/digits-bn-seed3",
        f"early     mlp_relu/digits-bn-seed0: test accuracy 98.22 %, 61 epochs, 1.63 s each  {rest}",
        f"failed    mlp_relu/digits-bn-seed2: ValueError: [no]  {rest}",
    ]


def test_plain_lines_say_now_and_then_how_far_the_runs_are(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    lines = PlainLines(Console(file=text), lambda _: None)
    lines.tick(state)
    assert text.getvalue() == ""
    minute = time.monotonic() + 61
    monkeypatch.setattr("bnlab.studies.display.time.monotonic", lambda: minute)
    lines.tick(state)
    lines.tick(state)
    (line,) = text.getvalue().splitlines()
    assert line.endswith("running   mlp_relu/digits-bn-seed3 epoch 7 of at most 100")


def test_the_live_display_shows_the_whole_study(state: State) -> None:
    text = io.StringIO()
    width = 120 + len(str(state.folder))  # a line that is broken loses the space where it is
    console = Console(file=text, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    done = runs_of(batch_norm=(True,))[0]
    with LiveDisplay(console, lambda _: 90.0) as display:
        display.tick(state)
        display.ended(state, done)
    shown = text.getvalue()
    for part in (
        f"study {state.folder}: 2 of 5 done, 1 running, 1 failed, about 2 min left",
        "epoch 7 of at most 100",
        "another study works on it",
        "✓ mlp_relu/digits-bn-seed0: test accuracy 98.22 %",
    ):
        assert part in shown


def test_the_end_has_a_table_the_failures_logs_and_the_next_steps(state: State) -> None:
    state.waiting.clear()
    state.running.clear()
    text = "\n".join(end(state))
    assert "mlp_relu/digits-bn-seed0  early     98.22 %        61      1.63\n" in text
    assert "mlp_relu/digits-bn-seed1  diverged  10.00 %        1       none\n" in text
    assert "log.txt:\n    a\n    ValueError: [no]\n" in text
    assert "1 of 3 runs failed; the same command with --retry_failed" in text
    assert f"bnlab report {state.folder}" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (36300, "10 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_diverged_run_in_words() -> None:
    assert in_words(DIVERGED) == "test accuracy 10.00 %, 1 epochs, diverged at step 9"


def test_a_tables_columns_stand_under_each_other() -> None:
    assert table([["a", "bb"], ["ccc", ""]]) == ["a    bb", "ccc"]
