"""A study of a real run that is killed in the midst of training ends with the numbers of one that is not.

The full-size test, eight runs and ten kills, is benchmarks/kill_study.py.
"""

import time
from pathlib import Path

import pytest

from tests.studies.equal_studies import numbers_of
from tests.studies.real_study import CPU, folder_for_a_study, start_warm, study

WORDS = ("--configs", "mlp_dropout", "--batch_norm", "on", "--jobs", "2", "--trainer.max_epochs", "12", *CPU)


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_numbers(tmp_path: Path) -> None:
    words = (*WORDS, "--trainer.log_every_n_steps", "1")
    with folder_for_a_study(tmp_path) as folder:
        killed_study = start_warm(*words, "--name", "killed", folder=folder)
        deadline = time.monotonic() + 100
        while not list(folder.glob("tb_logs/killed/*/*/checkpoints/last.ckpt")):
            assert killed_study.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.1)
        killed_study.kill()
        killed_study.wait()
        assert not list(folder.glob("tb_logs/killed/*/*/result.json")), "the kill came too late"
        assert study(*words, "--name", "killed") == 0
        assert study(*words, "--name", "undisturbed") == 0
        (log,) = [path.read_text() for path in folder.glob("tb_logs/killed/*/*/log.txt")]
        assert "goes on from" in log
        killed, whole = (numbers_of(folder / "tb_logs" / name) for name in ("killed", "undisturbed"))
        assert len(whole) == 1
        assert killed == whole
