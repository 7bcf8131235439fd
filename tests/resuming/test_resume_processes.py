"""Real processes, real signals."""

import random
import signal
import time
from pathlib import Path
from subprocess import Popen

import pytest

from bnlab.cli.main import main
from tests.helpers.command_line import finish, read_yaml, start
from tests.resuming.resumed import FIT, WATCHED, assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

LONGER = (*WATCHED, "--trainer.max_epochs", "30", "--early_stopping.patience", "100")


def wait_for_new(path: Path, before: int, process: Popen[str]) -> None:
    """Wait until a file is written anew."""
    deadline = time.monotonic() + 90
    while changed(path) == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


def changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def stop(folder: Path, number: signal.Signals, words: tuple[str, ...], after: float) -> int:
    """Go on with the run `folder/run`, and send its process a signal some time after the next checkpoint."""
    checkpoint = folder / "run/checkpoints/last.ckpt"
    before = changed(checkpoint)
    process = start(*FIT, *words, "--run_folder", "run", "--resume", folder=folder)
    wait_for_new(checkpoint, before, process)
    time.sleep(after)
    process.send_signal(number)
    return finish(process)[0]


def end(folder: Path, name: str, words: tuple[str, ...]) -> None:
    status, _, errors = finish(start(*FIT, *words, "--run_folder", name, "--resume", folder=folder))
    assert status == 0, errors


def test_a_run_that_is_killed_and_terminated_again_and_again(tmp_path: Path) -> None:
    moments = random.Random(0)
    main([*FIT, *LONGER, "--run_folder", "whole"])
    for number, status in [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 1)]:
        assert stop(tmp_path, number, LONGER, moments.uniform(0, 0.3)) == status
        outcome = read_yaml(tmp_path / "run/run.yaml")["outcome"]["status"]
        assert outcome == ("running" if number == signal.SIGKILL else "interrupted")
    end(tmp_path, "run", LONGER)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_loader_processes_begin_within_an_epoch(tmp_path: Path) -> None:
    words = (*WATCHED, "--data.num_workers", "1", "--checkpoint.every_n_train_steps", "4")
    main([*FIT, *WATCHED, "--run_folder", "whole"])
    stop(tmp_path, signal.SIGTERM, words, 0.05)
    end(tmp_path, "run", words)
    whole, run = (read_yaml(tmp_path / name / "run.yaml") for name in ("whole", "run"))
    assert (run["val_acc"], run["train_loss"]) == (whole["val_acc"], whole["train_loss"])


def test_two_ranks_stop_together_and_go_on(tmp_path: Path) -> None:
    """SIGTERM to one of them; dropout differs from rank to rank, and both go on with their own."""
    ddp = (
        "--trainer.strategy",
        "ddp",
        "--trainer.devices",
        "2",
        "--data.batch_size",
        "16",
        "--trainer.max_epochs",
        "8",
    )
    words = (*LONGER, *ddp, "--model.batch_norm", "false", "--trainer.max_epochs", "8")
    end(tmp_path, "whole", words)
    assert stop(tmp_path, signal.SIGTERM, words, 0.1) == 143
    assert read_yaml(tmp_path / "run/run.yaml")["outcome"]["status"] == "interrupted"
    end(tmp_path, "run", words)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
