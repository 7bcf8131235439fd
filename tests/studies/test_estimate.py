"""Estimates of the time of runs, from those that are done and those that are running."""

import time
from pathlib import Path
from typing import Any

import pytest

from bnlab.studies.estimate import START_S, from_results, shared_out, time_left
from bnlab.studies.grid import Run
from bnlab.studies.study import Running, State
from tests.studies.grids import runs_of


def result(run: Run, epochs: int, seconds: float | None, status: str = "early") -> dict[str, Any]:
    """A run's result."""
    return {**run.identity, "outcome": {"status": status, "epochs": epochs}, "seconds_per_epoch": seconds}


def test_the_most_alike_results_count() -> None:
    """First the same experiment, then the same net with, then without regard to batch norm, then any batch size."""
    relu_v, relu_b, elu_v, elu_b = runs_of("mlp_relu mlp_elu")
    (other_size, _) = runs_of(batch_sizes=(256,))
    (cnn, _) = runs_of("cnn_relu")
    found = {
        "any size": result(other_size, 10, 1.0),
        "either norm": result(elu_b, 10, 2.0),
        "same norm": result(elu_v, 10, 3.0),
        "same experiment": result(relu_v, 10, 4.0),
    }
    expected = [10.0, 20.0, 30.0, 40.0]
    for count, seconds in enumerate(expected, 1):
        estimate = from_results(relu_v, list(found.values())[:count])
        assert estimate is not None
        assert estimate.seconds == pytest.approx(START_S + seconds)
    assert from_results(cnn, found.values()) is None
    assert from_results(relu_b, [result(relu_v, 10, None), result(relu_b, 0, 1.0, "failed")]) is None


def test_several_results_give_their_mean() -> None:
    run, *_ = runs = runs_of(seeds=(0, 1, 2), batch_norm=(True,))
    estimate = from_results(run, [result(runs[1], 10, 1.0), result(runs[2], 30, 1.0)])
    assert estimate is not None
    assert estimate.seconds == pytest.approx(START_S + 20)
    assert estimate.source == "as 2 finished runs like it"


def test_work_is_shared_out() -> None:
    assert shared_out([], 2) == 0
    assert shared_out([10, 10, 10, 10], 2) == 20
    assert shared_out([30, 1, 1], 2) == 30  # never faster than the longest


def test_time_left_counts_what_waits_and_what_is_left_of_what_runs(tmp_path: Path) -> None:
    done, running, waiting = runs_of(seeds=(0, 1, 2), batch_norm=(True,))
    state = State(tmp_path, [waiting], results={done.name: result(done, 10, 5.0)})
    state.running[running.name] = Running(running, time.monotonic() - 18, 0)
    each = START_S + 50
    assert time_left(state, 1) == pytest.approx(each + each - 18, abs=1)
    assert time_left(state, 2) == pytest.approx(each, abs=1)


def test_without_results_the_pace_of_running_runs_counts(tmp_path: Path) -> None:
    """Two of at most 100 epochs are done after 20 s of training, so the whole run takes 1000 s."""
    running, waiting = runs_of(seeds=(0, 1), batch_norm=(True,))
    state = State(tmp_path, [waiting])
    state.running[running.name] = Running(running, time.monotonic() - START_S - 20, 0)
    assert time_left(state, 1) is None
    folder = tmp_path / running.name
    folder.mkdir(parents=True)
    (folder / "records.csv").write_text("step,epoch,wall_time,quantity,layer,value\n20,2,1.0,lr,,0.1\n")
    assert time_left(state, 1) == pytest.approx(2 * (START_S + 1000) - START_S - 20, abs=10)
