"""Runs that end by a signal, an exception or on their own, and go on."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from bnlab.cli.main import main
from tests.helpers.command_line import QUIET, read_yaml
from tests.resuming.resumed import FIT, WATCHED, Happening, also, assert_same_run, go_on

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def interrupts_work_again() -> Iterator[None]:
    """Lightning ignores SIGINT for good once it was interrupted."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("in_validation", [False, True])
def test_a_signal_ends_the_run_between_two_batches_with_a_checkpoint(
    number: signal.Signals, status: int, in_validation: bool, whole: Path
) -> None:
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with (
        also(Happening(lambda: os.kill(os.getpid(), number), 18 if in_validation else 12, in_validation)),
        pytest.raises(SystemExit) as ended,
    ):
        main([*FIT, *WATCHED, "--run_folder", "run"])
    assert ended.value.code == status
    assert signal.getsignal(signal.SIGTERM) == handlers[0]
    steps = 18 if in_validation else 13  # it was heard in the 13th step, or in the validation after the 18th
    assert read_yaml(Path("run/run.yaml"))["outcome"] == {"status": "interrupted", "epochs": steps // 9, "steps": steps}
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == steps
    go_on(Path("run"), *WATCHED)
    assert_same_run(Path("run"), whole)


def test_a_signal_while_gradients_accumulate_waits_for_the_step() -> None:
    flags = (*WATCHED, "--trainer.accumulate_grad_batches", "4")  # 3 steps an epoch: after 4, 8 and 9 batches
    main([*FIT, *flags, "--run_folder", "whole"])

    class Between(Happening):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
            if (trainer.current_epoch, batch_idx) == (1, 5):
                os.kill(os.getpid(), signal.SIGTERM)

    with also(Between(lambda: None, -1)), pytest.raises(SystemExit):
        main([*FIT, *flags, "--run_folder", "run"])
    assert read_yaml(Path("run/run.yaml"))["outcome"]["steps"] == 5
    go_on(Path("run"), *flags)
    assert_same_run(Path("run"), Path("whole"))


def test_a_signal_in_the_last_validation_changes_nothing() -> None:
    with also(Happening(lambda: os.kill(os.getpid(), signal.SIGTERM), 36, validation=True)):
        main([*FIT, *WATCHED, "--run_folder", "run"])
    assert read_yaml(Path("run/run.yaml"))["outcome"]["status"] == "finished"


def test_a_run_goes_on_after_an_exception(whole: Path) -> None:
    def fail() -> None:
        raise RuntimeError("out of luck")

    with also(Happening(fail, 12)), pytest.raises(RuntimeError, match="out of luck"):
        main([*FIT, *WATCHED, "--run_folder", "run"])
    assert read_yaml(Path("run/run.yaml"))["outcome"]["status"] == "failed"
    go_on(Path("run"), *WATCHED)
    assert_same_run(Path("run"), whole)


def test_several_stops_and_their_history(capsys: pytest.CaptureFixture[str], whole: Path) -> None:
    for step in (3, 12, 30):
        with also(Happening(lambda: os.kill(os.getpid(), signal.SIGTERM), step)), pytest.raises(SystemExit):
            go_on(Path("run"), *WATCHED)
    assert "bnlab fit --resume --run_folder run" in capsys.readouterr().out
    before = read_yaml(Path("run/run.yaml"))
    main(["fit", "--resume", "--run_folder", "run"])  # as it is told
    assert_same_run(Path("run"), whole)
    record = read_yaml(Path("run/run.yaml"))
    assert record["started"] == before["started"]
    assert record["argv"] == before["argv"]
    places = [{"file": "last.ckpt", "epoch": step // 9, "step": step} for step in (4, 13, 31)]
    assert [each["checkpoint"] for each in record["resumed"]] == places
    assert [each["left"]["status"] for each in record["resumed"]] == ["interrupted"] * 3
    assert (
        len(torch.load("run/checkpoints/last.ckpt", weights_only=True)["callbacks"]["RunRecord"]["epoch_seconds"]) == 4
    )


@pytest.mark.parametrize("end", ["finished", "early", "diverged"])
def test_a_kill_after_the_last_checkpoint_loses_no_result(end: str) -> None:
    """Nothing is trained then, and the outcome and its metrics are told."""
    flags = {
        "finished": (),
        "early": ("--model.lr", "1e-12", "--early_stopping.patience", "2"),
        "diverged": ("--model.lr", "1e20", "--model.batch_norm", "false"),
    }[end]
    main([*FIT, *WATCHED, *flags, "--run_folder", "whole"])
    shutil.copytree("whole", "run")
    record = read_yaml(Path("run/run.yaml"))
    assert record["outcome"]["status"] == end
    Path("run/run.yaml").write_text(yaml.safe_dump(record | {"outcome": {"status": "running"}, "val_acc": None}))
    go_on(Path("run"), *WATCHED, *flags)
    assert_same_run(Path("run"), Path("whole"))


def test_the_last_checkpoint_of_a_diverged_run_is_its_last_model(capsys: pytest.CaptureFixture[str]) -> None:
    """The thesis tests the model after the last epoch, whatever became of it."""
    flags = ("--model.lr", "1e20", "--model.batch_norm", "false")
    main([*FIT, *WATCHED, *flags, "--run_folder", "run"])
    outcome = read_yaml(Path("run/run.yaml"))["outcome"]
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert (outcome["status"], saved["global_step"]) == ("diverged", outcome["steps"])
    assert saved["state_dict"]["net.fc1.weight"].isnan().any()
    main(["test", "--ckpt_path", "run/checkpoints/last.ckpt", *QUIET])
    assert "nan" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_more_epochs_are_trained_as_if_they_had_been_asked_for_at_once(precision: str) -> None:
    flags = (*WATCHED, "--trainer.precision", precision)
    main([*FIT, *flags, "--run_folder", "whole"])
    main([*FIT, *flags, "--trainer.max_epochs", "2", "--run_folder", "run"])
    go_on(Path("run"), *flags, "--trainer.max_epochs", "4")
    assert_same_run(Path("run"), Path("whole"))
    assert read_yaml(Path("run/config.yaml"))["trainer"]["max_epochs"] == 4
