"""Real processes, real signals."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from bnlab.cli.main import main
from tests.helpers.command_line import (
    BOUND_S,
    Ended,
    Process,
    children_of,
    finish,
    finish_ranks,
    lost_a_rank,
    read_yaml,
    start,
    start_ranks,
)
from tests.resuming.resumed import FIT, WATCHED, assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

LONGER = (*WATCHED, "--trainer.max_epochs", "30", "--early_stopping.patience", "100")


def wait_for_new(path: Path, before: int, process: Process) -> None:
    """Wait until a file is written anew."""
    deadline = time.monotonic() + 90
    while changed(path) == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


def changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def stop(folder: Path, number: signal.Signals, words: tuple[str, ...], after: float = 0.0, rank: int = 0) -> Ended:
    """Resume the run `folder/run`, and send the process of a rank a signal some time after the next checkpoint."""
    checkpoint = folder / "run/checkpoints/last.ckpt"
    before = changed(checkpoint)
    process = start(*FIT, *words, "--run_folder", "run", "--resume", folder=folder)
    wait_for_new(checkpoint, before, process)
    time.sleep(after)
    os.kill(children_of(process)[rank - 1] if rank else process.pid, number)
    return finish(process, timeout=BOUND_S)


def left(folder: Path) -> str:
    """The outcome that the run's record tells."""
    return str(read_yaml(folder / "run/run.yaml")["outcome"]["status"])


def test_a_run_that_is_killed_and_terminated_again_and_again(tmp_path: Path) -> None:
    moments = random.Random(0)
    main([*FIT, *LONGER, "--run_folder", "whole"])
    for number, status in [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 1)]:
        stopped = stop(tmp_path, number, LONGER, moments.uniform(0, 0.3))
        assert stopped.status == status
        assert left(tmp_path) == ("running" if number == signal.SIGKILL else "interrupted")
        assert "Traceback" not in stopped.errors
    assert "interrupted in epoch" in stopped.output
    assert "bnlab test --ckpt_path" in stopped.output
    assert not list((tmp_path / "run").glob(".run.yaml*"))
    main([*FIT, *LONGER, "--run_folder", "run", "--resume"])
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_loader_processes_begin_within_an_epoch(tmp_path: Path) -> None:
    words = (*WATCHED, "--data.num_workers", "1", "--checkpoint.every_n_train_steps", "4")
    main([*FIT, *WATCHED, "--run_folder", "whole"])
    stop(tmp_path, signal.SIGTERM, words, 0.05)
    resumed = finish(start(*FIT, *words, "--run_folder", "run", "--resume", folder=tmp_path))
    assert resumed.status == 0, resumed.errors
    whole, run = (read_yaml(tmp_path / name / "run.yaml") for name in ("whole", "run"))
    assert (run["val_acc"], run["train_loss"]) == (whole["val_acc"], whole["train_loss"])


def test_two_ranks_stop_together_or_die_together_and_go_on(tmp_path: Path) -> None:
    """SIGTERM to one of them, then a kill of the other; dropout differs from rank to rank, and each keeps its own.

    Lightning starts the second rank of those that are stopped; all others are started as by a cluster.
    """
    words = (*LONGER, "--data.batch_size", "32", "--model.batch_norm", "false", "--trainer.max_epochs", "12")

    def end(name: str) -> None:
        ends = finish_ranks(start_ranks(*FIT, *words, "--run_folder", name, "--resume", folder=tmp_path))
        assert [end.status for end in ends] == [0, 0], ends

    end("whole")
    launched = (*words, "--trainer.strategy", "ddp", "--trainer.devices", "2")
    assert stop(tmp_path, signal.SIGTERM, launched, 0.1).status == 143
    assert left(tmp_path) == "interrupted"
    died = stop(tmp_path, signal.SIGKILL, launched, rank=1)
    assert died.status != 0
    assert lost_a_rank(died.errors)
    assert left(tmp_path) in ("running", "failed")
    end("run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
