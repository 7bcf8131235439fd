"""A job under SLURM whose time is up: one process with SLURM's variables and a stand-in for its `scontrol`."""

import os
import signal
from pathlib import Path

import pytest

from bnlab.cli.main import main
from bnlab.resuming.stopping import requeue
from tests.helpers.command_line import read_yaml
from tests.resuming.resumed import FIT, WATCHED, Happening, also, assert_same_run, go_on

pytestmark = pytest.mark.usefixtures("one_thread")

JOB = {
    **{"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "cnn", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "n1"},
}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which `scontrol` writes what it was asked; this process is SLURM's."""
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    programs = tmp_path / "programs"
    programs.mkdir()
    scontrol = programs / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ ! -e {tmp_path}/refuse ] || exit 3\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return tmp_path / "asked"


def test_a_job_at_its_time_limit_saves_is_requeued_and_goes_on(
    whole: Path, asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not asked.exists()
    handler = signal.getsignal(signal.SIGUSR1)
    with also(Happening(lambda: os.kill(os.getpid(), signal.SIGUSR1), 12)), pytest.raises(SystemExit) as ended:
        main([*FIT, *WATCHED, "--run_folder", "run"])
    assert ended.value.code == 143
    assert asked.read_text() == "requeue 7\n"
    assert "job 7 is requeued" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGUSR1) == handler
    assert not list(Path().glob("**/hpc_ckpt*"))
    assert read_yaml(Path("run/run.yaml"))["outcome"] == {"status": "interrupted", "epochs": 1, "steps": 13}
    go_on(Path("run"), *WATCHED)
    assert_same_run(Path("run"), whole)


def test_lightnings_own_checkpoint_for_a_requeue_is_not_taken_up(
    asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("hpc_ckpt_1.ckpt").touch()
    with pytest.raises(SystemExit):
        main([*FIT, *WATCHED, "--run_folder", "run"])
    assert "hpc_ckpt_1.ckpt is a checkpoint that Lightning made for a requeue" in capsys.readouterr().err
    assert not Path("run").exists()


def test_an_array_job_is_requeued_by_its_own_number(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert requeue().startswith("job 5_2 is requeued")
    assert asked.read_text() == "requeue 5_2\n"


def test_what_keeps_a_job_from_being_requeued_is_told(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (asked.parent / "refuse").touch()
    assert requeue() == "job 7 could not be requeued: scontrol ended with 3"
    monkeypatch.setenv("PATH", "/nowhere")
    assert requeue() == "job 7 could not be requeued: [Errno 2] No such file or directory: 'scontrol'"
