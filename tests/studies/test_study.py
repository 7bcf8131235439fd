"""The study's loop and the local engine, with real processes that need no torch: what is started, kept and survived."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from bnlab.studies.results import read_result
from tests.helpers.locked_elsewhere import locked_elsewhere
from tests.helpers.processes import alive, wait_for
from tests.studies.real_study import PATHS
from tests.studies.stub_processes import lines, pids, start, total_after
from tests.studies.stub_study import Notes, stub_study

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def project_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the tests' modules."""
    monkeypatch.setenv("PYTHONPATH", PATHS)


def test_every_run_is_done_once_and_never_more_than_jobs_at_a_time(tmp_path: Path) -> None:
    notes = Notes()
    state = stub_study(tmp_path, range(5), watcher=notes)
    assert not state.waiting
    assert not state.running
    assert {result["seed"]: result["test_acc"] for result in state.results.values()} == {
        seed: total_after(seed, 3) for seed in range(5)
    }
    assert notes.most_running == 2
    assert sorted(notes.lines) == sorted(
        f"{what} mlp_relu/digits-bn-seed{seed}" for seed in range(5) for what in ("start", "finished")
    )
    assert set(map(len, lines(tmp_path, "starts.txt").values())) == {1}
    for result in state.results.values():
        assert result["val_acc"] is None
        assert result["test_loss"] is None
        assert result["study"] == {"engine": "local", "jobs": 2, "threads": 1}


def test_finished_runs_are_kept_and_new_ones_added(tmp_path: Path) -> None:
    stub_study(tmp_path, range(2))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/result.json")}
    notes = Notes()
    state = stub_study(tmp_path, range(3), watcher=notes)
    assert len(state.results) == 3
    assert notes.lines == ["start mlp_relu/digits-bn-seed2", "finished mlp_relu/digits-bn-seed2"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"model.fail": "no luck"}, "RuntimeError: no luck"),
        ({"model.die": int(signal.SIGSEGV)}, "its process was killed by SIGSEGV"),
        ({"model.die": int(signal.SIGKILL)}, "its process was killed by SIGKILL; the system does this when memory"),
    ],
)
def test_a_failure_is_a_result_and_is_not_tried_again_unasked(
    overrides: dict[str, Any], error: str, tmp_path: Path
) -> None:
    state = stub_study(tmp_path, [4], overrides)
    (result,) = state.failed.values()
    assert result["outcome"]["error"].startswith(error)
    assert result["test_acc"] is None
    again = stub_study(tmp_path, [4], overrides)
    assert again.failed == state.failed
    assert [len(starts) for starts in lines(tmp_path, "starts.txt").values()] == [1]


def test_a_process_that_stumbles_after_its_result_was_written_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a library may, while Python shuts down."""
    monkeypatch.setenv("STUB_EXIT", "139")
    state = stub_study(tmp_path, [4])
    assert [result["outcome"]["status"] for result in state.results.values()] == ["finished"]


def test_one_failure_does_not_stop_the_others_and_its_log_is_kept(tmp_path: Path) -> None:
    """A folder bars the failing run's way, and no other's."""
    blocked = tmp_path / "mlp_relu" / "digits-bn-seed0"
    (blocked / ".checkpoint").mkdir(parents=True)
    state = stub_study(tmp_path, range(3), jobs=1)
    assert list(state.failed) == ["mlp_relu/digits-bn-seed0"]
    assert "IsADirectoryError" in state.failed["mlp_relu/digits-bn-seed0"]["outcome"]["log_tail"]
    assert "IsADirectoryError" in (blocked / "log.txt").read_text()
    assert len(state.results) == 3


def test_failed_runs_are_tried_again_on_request_from_their_checkpoint(tmp_path: Path) -> None:
    flags = {"model.fail_once": True, "model.steps": 6}
    assert len(stub_study(tmp_path, [1], flags).failed) == 1
    state = stub_study(tmp_path, [1], flags, retry_failed=True)
    (result,) = state.results.values()
    assert result["outcome"]["status"] == "finished"
    assert result["test_acc"] == total_after(1, 6)
    assert list(lines(tmp_path, "steps.txt").values()) == [["1", "2", "3", "4", "5", "6"]]


def test_a_run_that_another_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    """The study waits for it, and takes it over when it is let go without a result."""
    folder = tmp_path / "mlp_relu" / "digits-bn-seed0-steps_3"
    with locked_elsewhere(folder):
        study = start(tmp_path, 2, 2, 3)
        wait_for(lambda: (tmp_path / "mlp_relu" / "digits-bn-seed1-steps_3" / "result.json").exists())
        time.sleep(0.5)
        assert study.poll() is None
        assert not (folder / "starts.txt").exists()
    assert study.wait(20) == 0
    assert read_result(folder) is not None


def test_two_studies_at_once_share_the_work(tmp_path: Path) -> None:
    studies = [start(tmp_path, 2, 8, 10) for _ in range(2)]
    assert [study.wait(60) for study in studies] == [0, 0]
    starts = lines(tmp_path, "starts.txt")
    assert len(starts) == 8
    assert set(map(len, starts.values())) == {1}
    for path in tmp_path.glob("*/*/result.json"):
        result = json.loads(path.read_text())
        assert result["test_acc"] == total_after(result["seed"], 10)


def test_a_killed_study_takes_its_runs_with_it(tmp_path: Path) -> None:
    study = start(tmp_path, 3, 3, 1000)
    wait_for(lambda: len(lines(tmp_path, "steps.txt")) == 3)
    started = pids(tmp_path)
    assert all(map(alive, started))
    study.kill()
    study.wait()
    wait_for(lambda: not any(map(alive, started)), 5)
    assert not list(tmp_path.glob("*/*/result.json"))


def test_killed_ten_times_it_ends_with_what_an_undisturbed_study_has(tmp_path: Path) -> None:
    """Every run goes on from its checkpoint: no step is missing, and at most one per kill is trained twice."""
    moments = random.Random(0)
    for _ in range(10):
        study = start(tmp_path, 3, 8, 30)
        time.sleep(moments.uniform(0.3, 0.9))
        study.kill()
        study.wait()
    assert start(tmp_path, 3, 8, 30).wait(60) == 0
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/result.json")]
    assert {result["seed"]: result["test_acc"] for result in results} == {
        seed: total_after(seed, 30) for seed in range(8)
    }
    assert {result["outcome"]["status"] for result in results} == {"finished"}
    assert len(pids(tmp_path)) > 8  # runs were broken off and went on
    for steps in lines(tmp_path, "steps.txt").values():
        assert sorted(set(map(int, steps))) == list(range(1, 31))
        assert len(steps) <= 30 + 10


def test_ctrl_c_ends_the_runs_too(tmp_path: Path) -> None:
    study = start(tmp_path, 2, 2, 1000)
    wait_for(lambda: len(lines(tmp_path, "steps.txt")) == 2)
    started = pids(tmp_path)
    study.send_signal(signal.SIGINT)
    study.wait(20)
    wait_for(lambda: not any(map(alive, started)))  # the kernel needs a moment
    assert not list(tmp_path.glob("*/*/result.json"))
