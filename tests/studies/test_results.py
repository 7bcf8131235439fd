"""result.json: strict, whole or not at all, and the same keys however a run ended."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.studies.results import (
    epoch_seconds,
    epochs_begun,
    log_tail,
    of_ended_run,
    of_failed_run,
    read_result,
    write_result,
)
from bnlab.studies.worker import make_task
from bnlab_callbacks.record_file import Row
from tests.studies.grids import runs_of

HEADER = ",".join(Row._fields) + "\n"


def the_task(folder: Path) -> dict[str, Any]:
    """A run's task, with the run in a folder of its own within `folder`."""
    content = make_task(runs_of(overrides={"model.lr": 0.1})[0], folder, {"engine": "local", "jobs": 2, "threads": 1})
    Path(content["folder"]).mkdir(parents=True)
    return content


def records(folder: Path, *rows: str) -> None:
    """Write a table of records."""
    (folder / "records.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))


def test_a_result_is_strict_json(tmp_path: Path) -> None:
    """NaN and infinities, which JSON has not, are null."""
    evidence = {"loss": float("nan"), "previous_loss": float("inf")}
    write_result(tmp_path, {"outcome": {"status": "diverged", "evidence": evidence}, "list": [1.0, float("-inf")]})
    text = (tmp_path / "result.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content == {
        "schema": 1,
        "outcome": {"status": "diverged", "evidence": {"loss": None, "previous_loss": None}},
        "list": [1.0, None],
    }
    assert read_result(tmp_path) == content
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"schema": 2}'])
def test_what_is_no_result_counts_as_none(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    assert read_result(tmp_path) is None


def test_the_result_of_a_run(tmp_path: Path) -> None:
    """Everything of run.yaml that the schema names, and seconds per epoch from the records."""
    content = the_task(tmp_path)
    folder = Path(content["folder"])
    record = {
        "outcome": {"status": "early", "epochs": 3, "steps": 27},
        "val_acc": 0.5,
        "train_loss": 1.5,
        "samples": {"train": 9, "val": 1, "test": 2},
        "parameters": 7,
        "hardware": {"device": "cpu"},
        "precision": "32-true",
        "versions": {"torch": "2"},
        "git": None,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds_per_epoch": 99.0,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(record))
    records(folder, "8,0,1.0,time/epoch_s,,2.0", "17,1,2.0,time/epoch_s,,3.0", "17,1,2.0,val_acc,,0.5")
    result = of_ended_run(folder, content, {"test_acc": 0.25, "test_loss": 2.0})
    assert result.pop("ended") > result["started"]
    assert result == {
        **{name: value for name, value in record.items() if name != "seconds_per_epoch"},
        "experiment": "mlp_relu",
        "architecture": "mlp",
        "dataset": "digits",
        "batch_norm": False,
        "seed": 0,
        "batch_size": 64,
        "overrides": {"model.lr": 0.1},
        "test_acc": 0.25,
        "test_loss": 2.0,
        "seconds_per_epoch": 2.5,
        "argv": ["bnlab", *content["words"]],
        "study": {"engine": "local", "jobs": 2, "threads": 1},
    }


@pytest.mark.parametrize(
    ("status", "reason", "log", "error"),
    [
        (1, "", "Traceback\n  x\nValueError: no\n\n", "ValueError: no"),
        (2, "", "", "its process ended with status 2 and no message"),
        (-9, "", "step 1\n", "its process was killed by SIGKILL; the system does this when memory runs out: try fewer"),
        (-11, "", "step 1\n", "its process was killed by SIGSEGV"),
        (1, "Ray could not run it: x", "step 1\n", "Ray could not run it: x"),
        (0, "", "step 1\n", "step 1"),
    ],
)
def test_the_result_of_a_failure(status: int, reason: str, log: str, error: str, tmp_path: Path) -> None:
    content = the_task(tmp_path)
    folder = Path(content["folder"])
    (folder / "log.txt").write_text(log)
    result = of_failed_run(folder, content, status, reason)
    assert result["outcome"].pop("error").startswith(error)
    assert result["outcome"] == {"status": "failed", "epochs": None, "steps": None, "log_tail": log.rstrip("\n")}
    assert result.keys() == of_ended_run(folder, content, {}).keys()
    assert result["test_acc"] is None


def test_the_end_of_a_long_log(tmp_path: Path) -> None:
    assert log_tail(tmp_path) == ""
    lines = [f"line {number} é" for number in range(5000)]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    assert log_tail(tmp_path).splitlines() == lines[-20:]


def test_an_epoch_that_was_trained_twice_counts_once_and_a_part_not_at_all(tmp_path: Path) -> None:
    assert epoch_seconds(tmp_path) == []
    records(
        tmp_path,
        "8,0,1.0,time/epoch_s,,2.0",
        "17,1,2.0,time/epoch_s,,50.0",  # broken off before its checkpoint
        "17,1,3.0,time/epoch_s,,3.0",
        "26,2,4.0,time/partial_epoch,,1.0",
        "26,2,4.0,time/epoch_s,,0.5",
    )
    assert epoch_seconds(tmp_path) == [2.0, 3.0]


def test_how_far_a_run_is(tmp_path: Path) -> None:
    """From the last whole line of its records, of which a kill may leave a part."""
    assert epochs_begun(tmp_path) == 0
    records(tmp_path)
    assert epochs_begun(tmp_path) == 0
    records(tmp_path, "0,0,1.0,train_loss_step,,2.3", "9,1,2.0,lr,,0.1")
    assert epochs_begun(tmp_path) == 2
    with (tmp_path / "records.csv").open("a") as file:
        file.write("18,2,3.0,l")
    assert epochs_begun(tmp_path) == 2
    records(tmp_path, *["9,41,2.0,grad_rms,00_net.fc1,0.1"] * 1000)
    assert epochs_begun(tmp_path) == 42
