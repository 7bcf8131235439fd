"""`bnlab study` for real: three small runs on the digits, of which one diverges and one fails at first."""

import io
import json
import shlex
import signal
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from bnlab.cli.main import main
from tests.helpers.processes import alive, command_of, descendants, wait_for
from tests.studies.real_study import CPU, folder_for_a_study, start_warm, study, write_config

pytestmark = pytest.mark.slow

CONFIGS = ("--configs", "good.yaml,wild.yaml,bad.yaml", "--batch_norm", "off")
WORDS = (*CONFIGS, "--jobs", "2", "--trainer.max_epochs", "2", *CPU)
GOOD, WILD, BAD = (f"{name}/digits-vanilla-seed0-accelerator_cpu-max_epochs_2" for name in ("good", "wild", "bad"))
STUDY = Path("tb_logs/study")


class First(NamedTuple):
    """What the first study left."""

    status: int
    output: str
    results: dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of these tests, with three configs."""
    with folder_for_a_study(tmp_path_factory.mktemp("study")) as folder:
        write_config("good", model={"architecture": "mlp"})
        write_config("wild", model={"architecture": "mlp", "init": "normal", "init_std": 1.0})
        write_config("odd", model={"architecture": "mlp", "init": "normal"})
        crash = {"class_path": "tests.studies.troubles.Crash", "init_args": {"once": "crashed"}}
        write_config("bad", model={"architecture": "mlp"}, trainer={"callbacks": [crash]})
        yield folder


@pytest.fixture(scope="module")
def first(folder: Path) -> First:
    """The study, as a person runs it."""
    with redirect_stdout(io.StringIO()) as output:
        status = study(*WORDS)
    return First(status, output.getvalue(), {name: read(name) for name in (GOOD, WILD, BAD)})


def read(name: str) -> dict[str, Any]:
    """A run's result."""
    content = json.loads((STUDY / name / "result.json").read_text(), parse_constant=pytest.fail)
    assert isinstance(content, dict)
    return content


def test_one_failure_fails_the_command_but_no_other_run(first: First) -> None:
    assert first.status == 1
    statuses = {name: result["outcome"]["status"] for name, result in first.results.items()}
    assert statuses == {GOOD: "finished", WILD: "diverged", BAD: "failed"}


def test_the_output_tells_a_person_everything(first: First) -> None:
    assert "study tb_logs/study: 3 runs, 0 of them done; 2 at once (local)" in first.output
    assert f"finished  {GOOD}: test accuracy {100 * first.results[GOOD]['test_acc']:.2f} %, 2 epochs" in first.output
    assert "RuntimeError: the second epoch is too much" in first.output.split("log.txt:")[1]
    for line in ("1 of 3 runs failed", "--retry_failed", "bnlab report tb_logs/study"):
        assert line in first.output


def test_a_result_holds_what_its_run_was_and_became(first: First) -> None:
    result = first.results[GOOD]
    record = yaml.safe_load((STUDY / GOOD / "run.yaml").read_text())
    for name in ("outcome", "val_acc", "train_loss", "samples", "parameters", "hardware", "precision", "versions"):
        assert result[name] == record[name], name
    assert result["outcome"] == {"status": "finished", "epochs": 2, "steps": 18}
    assert result["argv"] == [
        *("bnlab", "fit", "--config", "good.yaml", "--seed_everything", "0", "--model.batch_norm", "false"),
        *("--data.dataset", "digits", "--data.root", "data", "--data.batch_size", "64"),
        *("--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"),
    ]
    assert record["argv"] == result["argv"]
    assert result["study"] == {"engine": "local", "jobs": 2, "threads": 1}
    assert 0 < result["seconds_per_epoch"] < 5
    assert result["overrides"] == {"trainer.accelerator": "cpu", "trainer.max_epochs": 2}


def test_it_is_the_last_epochs_model_that_was_tested(first: First, capsys: pytest.CaptureFixture[str]) -> None:
    main(["test", "--ckpt_path", str(STUDY / GOOD / "checkpoints/last.ckpt"), *CPU])
    output = capsys.readouterr().out
    assert repr(first.results[GOOD]["test_acc"])[:12] in output
    assert repr(first.results[GOOD]["test_loss"])[:12] in output


def test_a_diverged_run_is_a_result_with_nulls(first: First) -> None:
    result = first.results[WILD]
    assert result["outcome"]["evidence"]["loss"] is None
    assert result["test_loss"] is None
    assert 0 < result["test_acc"] < 0.2


def test_a_failed_run_has_its_log_and_is_tried_again_on_request_only(
    first: First, capsys: pytest.CaptureFixture[str]
) -> None:
    """The retry goes on from the checkpoint of the first epoch; the others' files are not touched."""
    before = {path: path.stat().st_mtime_ns for path in STUDY.rglob("*") if path.is_file() and BAD not in str(path)}
    before.pop(STUDY / "study.yaml")
    assert study(*WORDS) == 1
    assert read(BAD) == first.results[BAD]
    assert first.results[BAD]["outcome"]["error"] == "RuntimeError: the second epoch is too much"
    capsys.readouterr()
    assert study(*WORDS, "--retry_failed") == 0
    assert "3 runs, 2 of them done" in capsys.readouterr().out
    assert read(BAD)["outcome"] == {"status": "finished", "epochs": 2, "steps": 18}
    assert "goes on from last.ckpt: epoch 1, step 9" in (STUDY / BAD / "log.txt").read_text()
    for name in ("test_acc", "test_loss", "val_acc", "train_loss"):
        assert read(BAD)[name] == first.results[GOOD][name]  # the same net, seed and images
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_studys_own_file_starts_it_again(first: First, capsys: pytest.CaptureFixture[str]) -> None:
    study("--config", str(STUDY / "study.yaml"), "--dry_run")
    assert "0 of 3 runs to do" in capsys.readouterr().out


def test_a_config_that_was_changed_since_is_refused(first: First, capsys: pytest.CaptureFixture[str]) -> None:
    was = Path("good.yaml").read_text()
    write_config("good", model={"architecture": "mlp", "activation": "elu"})
    try:
        assert study(*WORDS) == 2
    finally:
        Path("good.yaml").write_text(was)
    assert f"{STUDY / GOOD}: model.activation is 'relu' there and 'elu' here" in capsys.readouterr().err


def test_a_dry_run_tells_what_is_to_do_and_how_long_it_may_take(
    first: First, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnlab.studies.estimate._SECONDS", 0.01)  # how long it looks at each net
    before = sorted(Path().rglob("*"))
    assert study("--configs", "good.yaml", "wild.yaml", "--jobs", "1", *WORDS[6:], "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        [GOOD, "finished"],
        [GOOD.replace("vanilla", "bn"), "new"],
        [WILD, "diverged"],
        [WILD.replace("vanilla", "bn"), "new"],
    ]
    assert lines[2].endswith("like it")
    assert lines[-1].startswith("2 of 4 runs to do: about ")
    assert study("--configs", "mlp_relu", "--seeds", "0", "1", "--name", "other", *CPU, "--dry_run") == 0
    assert "at most: 100 epochs at the pace of a few steps, measured here" in capsys.readouterr().out
    assert sorted(Path().rglob("*")) == before


REFUSED = {
    "a typo": (("--model.lrr", "1"), "lrr"),
    "a wrong value": (("--model.activation", "step"), "'relu', 'leaky_relu'"),
    "a value out of range": (("--model.lr", "-1"), "lr=-1"),
    "a second config that fits no net": (("--configs", "good.yaml", "odd.yaml"), "odd/digits-vanilla-seed0: init"),
    "what fits no net": (("--model.init", "normal"), "needs init_std"),
    "data that are missing": (("--datasets", "mnist", "--data.download", "false"), "mnist: the file"),
    "images that are missing": (("--datasets", "x=npz:nowhere"), "nowhere"),
    "batches of one": (("--batch_sizes", "1", "--batch_norm", "on"), "batch size of 2 or more"),
    "several devices": (("--trainer.devices", "2"), "each run trains on one device"),
    "fast_dev_run": (("--trainer.fast_dev_run", "true"), "leaves no result"),
    "no checkpoints": (("--trainer.enable_checkpointing", "false"), "enable_checkpointing=False"),
    "a hidden checkpoint": (("--checkpoint.filename", "best"), "from their last checkpoints"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_fail_in_every_run_fails_once_and_writes_nothing(
    words: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("--configs", "good.yaml", "--name", "refused", *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("bnlab: error: ")
    assert not Path("tb_logs/refused").exists()


def test_ctrl_c_ends_the_runs_and_says_how_to_go_on(folder: Path) -> None:
    words = ("--configs", "good.yaml", "--name", "broken off", *CPU)
    process = start_warm(*words, folder=folder)
    wait_for(lambda: list(Path("tb_logs/broken off").glob("*/*/run.lock")), 60)
    workers = [pid for pid in descendants(process.pid) if b"bnlab.cli.study_run" in command_of(pid)]
    assert workers
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; 0 of 2 runs are done. The same command goes on from here:" in output
    assert f"bnlab study {shlex.join(words)}\n" in output
    assert not any(map(alive, workers))
    assert not list(Path("tb_logs/broken off").glob("*/*/result.json"))


def test_a_folder_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert study("--configs", "good.yaml", "--root_dir", "file") == 2
    assert "give another --root_dir" in capsys.readouterr().err


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert study("--help") == 0
    text = capsys.readouterr().out
    for flag in ("--configs", "--datasets", "--batch_norm", "--seeds", "--batch_sizes", "--dry_run", "--retry_failed"):
        assert flag in text
