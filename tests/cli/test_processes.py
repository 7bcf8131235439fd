"""The command line in processes of its own: help, Ctrl-C, two DDP ranks."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.cli.runs import CONFIGS, PROJECT, QUIET, finish, fit, read_yaml, run_folders, scalars, start

MLP = ("fit", "--config", str(CONFIGS / "mlp_relu.yaml"), "--trainer.accelerator", "cpu", *QUIET)


def test_help_is_there_at_once(tmp_path: Path) -> None:
    """Under two seconds, best of three; in fact nothing heavy is imported."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        status, output, _ = finish(start("--help", folder=tmp_path))
        seconds.append(time.perf_counter() - begin)
        assert status == 0
        assert all(command in output for command in ("fit", "validate", "test", "predict"))
    assert min(seconds) < 2
    code = "import sys, bnlab.cli.main as m; m.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_ctrl_c_ends_cleanly_with_the_last_checkpoint(tmp_path: Path) -> None:
    process = start(*MLP, "--trainer.max_epochs", "100000", "--early_stopping.patience", "100000", folder=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("tb_logs/**/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    status, output, errors = finish(process)
    assert status != 0
    (folder,) = run_folders()
    outcome = read_yaml(folder / "run.yaml")["outcome"]
    assert outcome["status"] == "interrupted"
    assert outcome["epochs"] >= 1
    assert "interrupted in epoch" in output
    assert "bnlab test --ckpt_path" in output
    assert "Traceback" not in errors
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] >= 0
    assert not list(folder.glob(".run.yaml*"))


@pytest.mark.parametrize("batch_norm", ["false", "true"])
def test_two_ranks_equal_one_process_with_the_same_global_batch(tmp_path: Path, batch_norm: str) -> None:
    """Disjoint shards, one set of events, the same losses, gradients, activations and validation accuracy.

    With batch norm each rank normalises by its own half of the batch, so numbers differ from the first step on; the
    run must still be whole: one event file, finite values, every validation sample counted once.
    """
    flags = ("--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "5", "--model.batch_norm", batch_norm)
    ddp = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "32")
    flags += ("--model.activation", "elu")  # smooth: at a ReLU's kink rounding switches a whole unit on or off
    status, output, errors = finish(start(*MLP, *flags, *ddp, folder=tmp_path))
    assert status == 0, errors
    assert output.count("finished after 2 epochs") == 1
    (two,) = run_folders()
    one = fit(*flags)
    assert len(list(two.glob("events*"))) == 1
    assert read_yaml(two / "run.yaml")["hardware"]["ranks"] == 2
    expected, found = scalars(one), scalars(two)
    assert found.keys() == expected.keys()
    correct = [round(value * 65, 3) for _, value in found["val_acc"]]
    assert correct == pytest.approx([round(c) for c in correct])  # of 65 images, an odd number, none counted twice
    for tag, records in expected.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in records], tag
        if batch_norm == "false" and not tag.startswith(("time/", "diagnostics/")):
            # Σg cancels: near 0 only absolute errors mean something
            tolerance = 1e-8 if tag.startswith("grad_mean") else 1e-6
            values = [value for _, value in records]
            assert [value for _, value in found[tag]] == pytest.approx(values, rel=2e-5, abs=tolerance), tag
