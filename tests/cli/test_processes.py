"""The command line in processes of its own: help, and two DDP ranks; for signals see tests/resuming."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.command_line import (
    CONFIGS,
    PROJECT,
    QUIET,
    finish,
    finish_ranks,
    fit,
    run_folders,
    scalars,
    start_fresh,
    start_ranks,
)

MLP = ("fit", "--config", str(CONFIGS / "mlp_relu.yaml"), "--trainer.accelerator", "cpu", *QUIET)


def test_help_is_there_at_once(tmp_path: Path) -> None:
    """Under two seconds, best of three; in fact nothing heavy is imported."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        status, output, _ = finish(start_fresh("--help", folder=tmp_path))
        seconds.append(time.perf_counter() - begin)
        assert status == 0
        assert all(command in output for command in ("fit", "validate", "test", "predict"))
    assert min(seconds) < 2
    code = "import sys, bnlab.cli.main as m; m.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_two_ranks_with_batch_norm_leave_one_whole_run(tmp_path: Path) -> None:
    """The records of one process and no others, one event file, every validation image counted once.

    Each rank normalises by its own half of the batch, so the numbers differ; without batch norm: test_ranks.
    """
    flags = ("--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "5", "--model.batch_norm", "true")
    ends = finish_ranks(start_ranks(*MLP, *flags, "--data.batch_size", "32", folder=tmp_path))
    assert [end.status for end in ends] == [0, 0], ends
    assert [end.output.count("finished after 2 epochs") for end in ends] == [1, 0]
    (two,) = run_folders()
    assert len(list(two.glob("events*"))) == 1
    expected, found = scalars(fit(*flags)), scalars(two)
    steps = [{tag: [step for step, _ in records] for tag, records in each.items()} for each in (found, expected)]
    assert steps[0] == steps[1]
    correct = [round(value * 65, 3) for _, value in found["val_acc"]]
    assert correct == pytest.approx([round(c) for c in correct])  # of 65 images, an odd number, none counted twice
