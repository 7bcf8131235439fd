"""`python -m bnlab_callbacks diagnose|show`: runs as text, from what they have written."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bnlab_callbacks
from bnlab.cli.main import main as bnlab_main
from bnlab_callbacks import Row, diagnose_text, show_text
from bnlab_callbacks.__main__ import main

HEADER = ",".join(Row._fields) + "\n"
FINDING = {
    "name": "dead_units",
    "severity": "warning",
    "layer": "net.act1",
    "since": 20,
    "evidence": "…",
    "advice": ["a lower learning rate"],
    "noticed": 22,
    "ended": None,
}


def diagnosis(folder: Path, *findings: dict[str, Any], verdict: str = "warning") -> Path:
    """A file as release 0.1.0 wrote it: without keys of advice."""
    content = {"schema": 1, "verdict": verdict, "steps": 48, "findings": findings, "not_checked": {}, "step": 47}
    folder.mkdir(parents=True, exist_ok=True)
    layers = {"net.fc1": {"‖g‖/‖w‖": 0.25, "std": "nan"}}
    (folder / "diagnosis.json").write_text(json.dumps(content | {"layers": layers}), encoding="utf-8")
    return folder


def records(folder: Path, *rows: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return folder


def python(*words: str, code: str = "", encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    folder = Path(bnlab_callbacks.__file__).parents[1]
    return subprocess.run(
        [sys.executable, *(["-c", code] if code else ["-m", "bnlab_callbacks"]), *words],
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
        encoding=encoding,
        timeout=60,
        check=False,
    )


ROWS = (
    "0,0,1.0,grad_rms,00_fc1,0.5",
    "0,0,1.0,grad_rms,01_fc2,0.25",
    "0,0,1.0,act_std,00_relu,1.0",
    "0,0,1.0,grad_nonfinite,00_fc1,0.0",
    "9,0,2.0,train_loss,,2.302",
    "9,0,2.0,grad_rms_epoch,00_fc1,7.0",  # a mean of what is shown itself
    "19,1,3.0,grad_rms,00_fc1,0.125",
    "19,1,3.0,grad_rms,01_fc2,0.25",
    "19,1,3.0,train_loss,,1.5",
)


def test_first_and_last_values_by_layer(tmp_path: Path) -> None:
    text = show_text(records(tmp_path, *ROWS))
    assert text.splitlines() == [
        str(tmp_path),
        "",
        "recorded up to step 19, epoch 1; first→last value, or one where both are the same:",
        "  train_loss  2.3→1.5",
        "",
        "  layer    act_std",
        "  00_relu        1",
        "",
        "  layer   grad_rms",
        "  00_fc1  0.5→0.12",
        "  01_fc2      0.25",
        "",
        "  0 at every layer, first and last: grad_nonfinite",
    ]


def test_rows_that_a_resumed_run_has_written_again_count(tmp_path: Path) -> None:
    again = ("0,0,4.0,lr,,0.1", "0,0,5.0,lr,,0.2", "9,0,6.0,lr,,0.3", "19,1,6.0,lr,,0.4", "9,0,7.0,lr,,0.5")
    assert "lr  0.2→0.5" in show_text(records(tmp_path, *again))


def test_a_run_of_many_quantities_fits_the_screen(tmp_path: Path) -> None:
    places = [(step, i, j) for step in (1, 2) for i in range(12) for j in range(30)]
    rows = [f"{step},0,1.0,quantity_{i},{j:02}_layer,{step + i / 7}" for step, i, j in places]
    whole = [f"1,0,1.0,scalar_{i},,{i / 7}" for i in range(20)]
    out = show_text(records(tmp_path / "run", *rows, *whole)).splitlines()[1:]
    assert max(map(len, out)) <= 118
    assert sum("… and 6 more" in line for line in out) == 1
    assert sum(line.startswith("  layer") for line in out) == 2  # blocks
    assert " ".join(out).count("quantity_") == 12
    assert sum("scalar_" in line for line in out) < 20


def test_a_diagnosis_of_an_older_release_and_pictures(tmp_path: Path) -> None:
    diagnosis(tmp_path, FINDING)
    (tmp_path / "heatmaps").mkdir()
    (tmp_path / "heatmaps" / "grad_rms.png").touch()
    text = show_text(tmp_path)
    assert "warning: dead units at net.act1 since step 20: …. Try: a lower learning rate\n" in text
    assert "net.fc1       0.25        nan" in text
    assert text.endswith("heatmaps): grad_rms")


def test_what_is_broken_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    records(tmp_path, *ROWS, "29,2,4.0,train_loss")
    (tmp_path / "diagnosis.json").write_text("{")
    text = show_text(tmp_path)
    assert "diagnosis.json is no diagnosis that can be read (JSONDecodeError" in text
    assert "train_loss  2.3→1.5" in text
    assert "records.csv cannot be read to its end: " in text


def test_parquet_comes_before_the_rows_of_a_run_that_goes_on(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    rows = [Row(0, 0, 1.0, "lr", "", 0.5), Row(9, 0, 2.0, "lr", "", 0.25)]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([row._asdict() for row in rows]), tmp_path / "records.parquet"
    )
    assert "lr  0.5→0.25" in show_text(tmp_path)
    assert "lr  0.5→0.125" in show_text(records(tmp_path, "19,1,3.0,lr,,0.125"))


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "records.parquet").touch()
    assert "needs pyarrow to be read (pip install pyarrow)" in show_text(tmp_path)


def test_several_diagnoses_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diagnosis(tmp_path / "found", FINDING, {**FINDING, "severity": "note", "name": "not_updated"})
    sound = diagnosis(tmp_path / "sound", verdict="healthy")
    assert diagnose_text([tmp_path]).splitlines()[1:] == [
        f"{found}  warning  dead units (net.act1, 20)",
        f"{sound}  healthy  —",
    ]
    assert diagnose_text([found, found]).splitlines()[:2] == [str(found), "diagnosis after 48 steps: warning"]
    assert diagnose_text([tmp_path], details=True).count("diagnosis after 48 steps") == 2
    assert main(["diagnose", str(tmp_path), "--details"]) == 0
    ours = capsys.readouterr().out
    bnlab_main(["diagnose", str(tmp_path), "--details"])
    assert capsys.readouterr().out == ours


@pytest.mark.parametrize("command", ["show", "diagnose"])
def test_a_folder_that_is_none_is_named(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, why in (("file", "is a file"), ("missing", "does not exist"), ("empty", "holds no")):
        assert main([command, str(tmp_path / name)]) == 2
        out, error = capsys.readouterr()
        assert not out
        assert error.startswith(f"python -m bnlab_callbacks: error: {tmp_path / name} {why}")
    records(tmp_path / "runs" / "one", *ROWS)
    assert main(["show", str(tmp_path / "runs")]) == 2
    assert f"It has 1 runs below it, such as {tmp_path / 'runs' / 'one'}" in capsys.readouterr().err


CODE = """
import sys
from bnlab_callbacks.__main__ import main
status = main(sys.argv[1:])
heavy = {"torch", "lightning", "pytorch_lightning", "numpy", "matplotlib", "tensorboard"} & sys.modules.keys()
assert not heavy, heavy
sys.exit(status)
"""


@pytest.mark.parametrize("command", ["show", "diagnose"])
def test_no_heavy_module_is_imported_and_no_terminal_is_too_small(command: str, tmp_path: Path) -> None:
    diagnosis(records(tmp_path, *ROWS), FINDING)
    done = python(command, str(tmp_path), code=CODE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "‖g‖/‖w‖" in done.stdout
    plain = python(command, str(tmp_path), encoding="ascii")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert plain.stdout == done.stdout.encode("ascii", "replace").decode()


def test_usage_names_the_command() -> None:
    done = python("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m bnlab_callbacks [-h] {diagnose,show}")
    assert python("nothing").returncode == 2
