"""Files that version 0.1.0 wrote are read and resumed by this one; README.md says what they are."""

from __future__ import annotations

import csv
import json
import lzma
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.image import imread

from bnlab.cli.main import main
from bnlab_callbacks import read_records
from bnlab_callbacks.core.naming import renamed
from tests.files_of_0_1_0.expected import event_steps, sums
from tests.files_of_0_1_0.project import train

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = Path(__file__).parent
Key = tuple[int, int, str, str]  # step, epoch, quantity, layer

NEW = ("act_outlier", "act_kurtosis", "dormant_frac")
TIMED = ("time/", "diagnostics/")  # quantities that no two runs have alike


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def unpacked(name: str) -> Path:
    """A copy of one of the folders within the current one, with its checkpoint unpacked."""
    folder = Path(shutil.copytree(FILES / name, name))
    for packed in folder.rglob("*.ckpt.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    return folder


def assert_same_end(run: Path, expected: Path, checkpoint: Path) -> None:
    """The resumed run left what the undisturbed one of 0.1.0 left, but for rounding and times."""
    assert_same_records(run, expected)
    now, then = event_steps(run), json_of(expected / "event_steps.json")
    del now["custom_scalars__config__"], then["custom_scalars__config__"]  # written anew: there are more quantities
    assert by_todays_names({tag: steps for tag, steps in now.items() if not is_new(tag)}) == by_todays_names(then)
    assert dead_units(run) == dead_units(expected)
    assert_same_diagnosis(json_of(run / "diagnosis.json"), json_of(expected / "diagnosis.json"))
    assert_same_sums(sums(torch.load(checkpoint, weights_only=True)), json_of(expected / "sums.json"))


def by_todays_names(steps: dict[str, list[int]]) -> dict[str, list[int]]:
    """The same, with the second call of a layer as `<layer>.2`: it was `<layer>#2`, and events are as they were."""
    found: dict[str, list[int]] = defaultdict(list)
    for tag, some in steps.items():
        found[renamed(tag)] += some
    return {tag: sorted(some) for tag, some in found.items()}


def assert_same_records(found: Path, expected: Path) -> None:
    """The same rows in `records.csv`, none of them twice.

    On one machine values are the same to the last bit. With the kernels of another processor they were found to differ
    by 7e-6 of themselves, and where sums nearly cancel by 3e-6 of the quantity's largest value.
    """
    now, then = values(found), values(expected)
    assert now.keys() == then.keys()
    largest: dict[str, float] = defaultdict(float)
    for (_, _, quantity, _), value in then.items():
        largest[quantity] = max(largest[quantity], abs(value))
    for key, value in then.items():
        quantity = key[2]
        if not quantity.startswith(TIMED):
            assert now[key] == pytest.approx(value, rel=1e-5, abs=2e-5 * largest[quantity]), key


def is_new(tag: str) -> bool:
    """Whether a tag or quantity is one that version 0.1.0 did not have."""
    return tag.partition("/")[0].removesuffix("_epoch") in NEW


def dead_units(folder: Path) -> list[list[str]]:
    """Rows of `dead_units.csv` as version 0.1.0 wrote them, who did not know dormant units."""
    with (folder / "dead_units.csv").open(newline="") as file:
        return [[renamed(row[0]), *row[1:6]] for row in csv.reader(file) if row[6:] != ["True"]]


def values(folder: Path) -> dict[Key, float]:
    """What a table of records holds; no row is there twice."""
    rows = [row for row in read_records(folder / "records.csv") if not is_new(row.quantity)]
    found = {(row.step, row.epoch, row.quantity, row.layer): row.value for row in rows}
    assert len(found) == len(rows)
    return found


def assert_same_diagnosis(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same but for wording and severity, which a later version may better: an unused layer is a note by now."""
    for name in ("schema", "steps", "step"):
        assert found[name] == expected[name]
    for name in ("name", "layer", "since", "ended"):
        assert [each[name] for each in found["findings"]] == [each[name] for each in expected["findings"]]
    # a later version has more rules, and checks what several rules find where one of them can be
    assert found["not_checked"].keys() >= expected["not_checked"].keys() - {"poor_initialisation"}
    layers = {renamed(layer): columns for layer, columns in expected["layers"].items()}
    assert found["layers"].keys() == layers.keys()
    for layer, columns in layers.items():
        assert found["layers"][layer] == pytest.approx(columns, rel=1e-5), layer


def assert_same_sums(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    """Sums over the same tensors, which differ by rounding only."""
    assert found.keys() == expected.keys()
    for name, (total, of_magnitudes, by_place) in expected.items():
        wanted = pytest.approx([total, of_magnitudes, by_place], rel=0, abs=1e-5 * of_magnitudes)
        assert found[name] == wanted, name


def seconds_of_epochs(checkpoint: Path) -> list[float]:
    """How long the epochs of a run of bnlab took that are in a checkpoint."""
    content = torch.load(checkpoint, weights_only=True)
    return list(content["callbacks"]["RunRecord"]["epoch_seconds"])


def json_of(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def yaml_of(path: Path) -> Any:
    """What a YAML file holds, without running code from it."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_a_run_goes_on_to_where_it_would_have_come_undisturbed(capsys: pytest.CaptureFixture[str]) -> None:
    run, expected = unpacked("run_stopped"), FILES / "run_undisturbed"
    checkpoint = run / "checkpoints" / "last.ckpt"
    before = seconds_of_epochs(checkpoint)
    main(["fit", "--resume", "--run_folder", str(run)])
    assert "goes on from last.ckpt: epoch 1, step 13." in capsys.readouterr().out
    assert_same_end(run, expected, checkpoint)
    record, undisturbed = yaml_of(run / "run.yaml"), yaml_of(expected / "run.yaml")
    assert record["outcome"] == undisturbed["outcome"]
    for name in ("val_acc", "train_loss"):
        assert record[name] == pytest.approx(undisturbed[name], rel=1e-5)
    (resumed,) = record["resumed"]
    assert resumed["checkpoint"] == {"file": "last.ckpt", "epoch": 1, "step": 13}
    assert resumed["left"] == {"status": "interrupted", "epochs": 1, "steps": 13}
    now, then = yaml_of(run / "config.yaml"), yaml_of(expected / "config.yaml")
    # arguments that version 0.1.0 did not have: their defaults are what was then
    assert now["gradients"].pop("parameters") == "weights"
    assert now["activations"].pop("effective_rank") is False
    assert now == then
    assert seconds_of_epochs(checkpoint)[:1] == before
    assert len(seconds_of_epochs(checkpoint)) == 3


# Lightning cannot know that this project's batches are made from their place in the epoch
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_project_with_plain_lightning_goes_on_to_where_it_would_have_come() -> None:
    run = unpacked("project_stopped")
    trainer = train(run, checkpoint=run / "last.ckpt")
    trainer.save_checkpoint("end.ckpt", weights_only=False)
    assert_same_end(run, FILES / "project_undisturbed", Path("end.ckpt"))
    train(Path("whole"))
    resumed, whole = (imread(folder / "heatmaps" / "grad_rms.png") for folder in (run, Path("whole")))
    assert resumed.shape == whole.shape
    assert (abs(resumed - whole) > 0.02).mean() < 0.01  # it shows the steps before the stop, too


@pytest.mark.parametrize("stopped", ["run_stopped", "project_stopped"])
def test_what_is_recorded_until_the_stop_is_what_the_undisturbed_run_recorded(stopped: str) -> None:
    """So that the tests above compare with the right runs."""
    before, whole = values(FILES / stopped), values(FILES / stopped.replace("stopped", "undisturbed"))
    assert len(before) > 400
    assert before.keys() < whole.keys()
    assert all(value == whole[key] for key, value in before.items() if not key[2].startswith(TIMED))


def test_a_checkpoint_is_tested(capsys: pytest.CaptureFixture[str]) -> None:
    run = unpacked("run_stopped")
    quiet = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
    main(["test", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), *quiet])
    shown = re.search(r"test_loss\D+([0-9.]+)", capsys.readouterr().out)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(1.4202600717544556, rel=1e-5)  # as 0.1.0 shows


def test_diagnoses_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", str(FILES / "project_undisturbed")])
    shown = capsys.readouterr().out
    assert "diagnosis after 21 steps: warning" in shown
    assert "no gradient at forgotten since step 2" in shown
    assert "relu.2" in shown  # `relu#2` in the file
    main(["diagnose", str(FILES)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "_stopped" in line or "_undist" in line]
    assert [(Path(row[0]).name, row[1]) for row in rows] == [
        ("project_stopped", "warning"),
        ("project_undisturbed", "warning"),
        ("run_stopped", "healthy"),
        ("run_undisturbed", "healthy"),
    ]


def test_a_report_reads_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run_stopped", "run_undisturbed"):
        shutil.copytree(FILES / name, Path("runs") / name)
    main(["report", "runs", "--format", "csv,svg", "--output", "report"])
    shown = capsys.readouterr().out
    assert "1 run on digits; 1 left out." in shown
    assert "run_stopped: the run has not ended: its status is interrupted" in shown
    with Path("report/tables/runs.csv").open(newline="") as file:
        (run,) = csv.DictReader(file)
    accuracy = yaml_of(FILES / "run_undisturbed" / "run.yaml")["val_acc"]
    assert float(run["val_accuracy_percent"]) == pytest.approx(100 * accuracy, rel=1e-5)
    figures = {path.name.partition("_mlp_relu")[0] for path in Path("report/figures").glob("*.svg")}
    assert figures >= {"curves", "gradients"}  # made of records.csv
