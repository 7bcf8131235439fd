"""The examples, each run as it stands in an empty folder."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.trainer.connectors import callback_connector

from bnlab_callbacks import read_records
from bnlab_callbacks.plugin import VARIABLE, callbacks_from_environment

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN_BY_A_TEST_BELOW = {"own_project.py", "environment_variable.py", "notebook.ipynb", "find_a_fault.py"}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)  # no thread of the progress bar


def load(name: str) -> dict[str, Any]:
    """An example's names, without running its main part."""
    return runpy.run_path(str(EXAMPLES / name))


def test_all_are_run_and_listed() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert files == RUN_BY_A_TEST_BELOW
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"[{name}]({name})" in listed for name in files)


def test_own_project() -> None:
    numbers = load("own_project.py")["main"]()
    assert numbers["train_loss"] < 0.2
    assert {"grad_rms_epoch/00_net.0", "dead_frac_epoch/00_net.1", "time/epoch_s"} <= numbers.keys()


@pytest.mark.parametrize("value", ["", "GradientMonitor(every_n_steps=5),RecordFile"])
def test_environment_variable(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # as Lightning does where the package is installed
    monkeypatch.setattr(callback_connector, "_load_external_callbacks", lambda group: callbacks_from_environment())
    monkeypatch.setenv(VARIABLE, value)
    table = Path(load("environment_variable.py")["main"]()) / "records.csv"
    assert table.exists() == bool(value)
    if value:
        steps = {row.step for row in read_records(table) if row.quantity == "grad_rms"}
        assert steps == {*range(0, 48, 5), 16, 32}  # every fifth, and the first of each epoch


def test_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in code:
        exec(compile("".join(cell["source"]), "notebook.ipynb", "exec"), names)
    assert names["diagnosis"].verdict == "healthy"
    assert "healthy" in capsys.readouterr().out
    assert names["grid"].shape == (5, 60)
    assert names["grid"].isfinite().all()


def test_find_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    faulty, mended = load("find_a_fault.py")["main"]()
    assert faulty.verdict == "failing"
    assert "vanishing_with_depth at net.fc1" in capsys.readouterr().out
    assert mended.verdict == "healthy"
