"""The engine `ray` on an embedded cluster, with Ray workers that are killed during a run."""

import json
import os
import signal
from pathlib import Path

import pytest

from bnlab.studies.ray_engine import RETRIES
from tests.helpers.processes import alive, command_of, descendants, parent_of, wait_for
from tests.studies.equal_studies import numbers_of
from tests.studies.real_study import CPU, PATHS, folder_for_a_study, study
from tests.studies.real_study import start as start_real
from tests.studies.stub_processes import lines, pids, start, total_after

pytest.importorskip("ray", reason="the extra bnlab[ray] is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def project_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the tests' modules."""
    monkeypatch.setenv("PYTHONPATH", PATHS)


def test_a_cluster_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder_for_a_study(tmp_path):
        words = ("--configs", "mlp_relu", "--trainer.max_epochs", "1", *CPU)
        assert study(*words, "--engine", "ray", "--ray_address", "127.0.0.1:1") == 2
    assert "--ray_address 127.0.0.1:1: nothing answers there" in capsys.readouterr().err


def test_a_run_whose_ray_worker_dies_goes_on_and_the_others_are_not_disturbed(tmp_path: Path) -> None:
    study = start(tmp_path, 2, 2, 100, "ray")
    wait_for(lambda: len(lines(tmp_path, "steps.txt")) == 2, 60)
    (victim,) = [int(pid) for pid in lines(tmp_path, "starts.txt")["digits-bn-seed0-steps_100"]]
    os.kill(parent_of(victim), signal.SIGKILL)
    wait_for(lambda: not alive(victim), 5)
    assert study.wait(60) == 0
    assert {run: len(starts) for run, starts in lines(tmp_path, "starts.txt").items()} == {
        "digits-bn-seed0-steps_100": 2,
        "digits-bn-seed1-steps_100": 1,
    }
    for path in tmp_path.glob("*/*/result.json"):
        result = json.loads(path.read_text())
        assert result["test_acc"] == total_after(result["seed"], 100)
        assert result["study"]["engine"] == "ray"
    for steps in lines(tmp_path, "steps.txt").values():
        assert len(steps) <= 101  # from the checkpoint, not from the beginning


def test_a_run_whose_ray_worker_dies_again_and_again_has_failed(tmp_path: Path) -> None:
    study = start(tmp_path, 1, 1, 10_000, "ray")
    for attempt in range(RETRIES + 1):
        wait_for(lambda attempt=attempt: len(pids(tmp_path)) > attempt, 60)
        os.kill(parent_of(pids(tmp_path)[-1]), signal.SIGKILL)
    assert study.wait(60) == 0
    (path,) = tmp_path.glob("*/*/result.json")
    outcome = json.loads(path.read_text())["outcome"]
    assert outcome["status"] == "failed"
    assert outcome["error"].startswith("its process was killed by SIGKILL")


def test_a_killed_study_takes_its_cluster_with_it(tmp_path: Path) -> None:
    study = start(tmp_path, 2, 2, 10_000, "ray")
    wait_for(lambda: len(lines(tmp_path, "steps.txt")) == 2, 60)
    # Ray's own agents end too, but look for their parent only now and then
    all_of_it = {pid for pid in descendants(study.pid) if b"Agent" not in command_of(pid)}
    assert set(pids(tmp_path)) <= all_of_it
    study.kill()
    study.wait()
    wait_for(lambda: not any(map(alive, all_of_it)), 30)


def test_a_real_study_with_a_killed_worker_has_the_numbers_of_the_local_engine(tmp_path: Path) -> None:
    words = ("--configs", "mlp_dropout", "--batch_norm", "on", "--jobs", "2", "--trainer.max_epochs", "12", *CPU)
    words = (*words, "--trainer.log_every_n_steps", "1")
    with folder_for_a_study(tmp_path) as folder:
        study = start_real(*words, "--engine", "ray", "--name", "ray", folder=folder)
        wait_for(lambda: list(folder.glob("tb_logs/ray/*/*/checkpoints/last.ckpt")), 100)
        (worker,) = [pid for pid in descendants(study.pid) if b"bnlab.cli.study_run" in command_of(pid)]
        os.kill(parent_of(worker), signal.SIGKILL)
        local = start_real(*words, "--name", "local", folder=folder)
        assert (study.wait(100), local.wait(100)) == (0, 0)
        (log,) = [path.read_text() for path in folder.glob("tb_logs/ray/*/*/log.txt")]
        assert "goes on from" in log
        assert numbers_of(folder / "tb_logs/ray") == numbers_of(folder / "tb_logs/local")
