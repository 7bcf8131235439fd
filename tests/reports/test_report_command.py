"""`bnlab report` as a person runs it."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from bnlab.cli.main import main
from bnlab.cli.report import run
from bnlab.errors import InputError
from bnlab.studies.results import of_ended_run, write_result
from tests.helpers.command_line import PROJECT, fit
from tests.reports.study_files import curve_rows, write_pair, write_run


@pytest.fixture(autouse=True)
def wide_and_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and a terminal that is wide enough."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


def test_the_main_table_and_the_files_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in (False, True):
        write_run(Path("study"), curve_rows([0.5, 0.9]), batch_norm=flag, test_acc=0.98 + 0.01 * flag)
    Path("study/broken").mkdir()
    Path("study/broken/result.json").write_text("{")
    main(["report", "study", "--format", "csv,html"])
    output, errors = capsys.readouterr()
    lines = output.splitlines()
    assert errors == ""
    assert "Test accuracy of the MLP in percent (thesis: table B.1)" in lines
    row = next(line for line in lines if "ReLU" in line)
    assert " ".join(row.split()) == "Activation function ReLU 98.00 (98.0) 99.00 (98.2) +1.00 (+0.2) agree"
    assert "2 runs on MNIST; 1 left out." in lines
    expected = (
        "MNIST: 2 test accuracies off the thesis's by 0.40 points on average, at most by +0.80 (mlp_relu batch norm)."
    )
    assert expected in lines
    assert (
        "note      no heatmap of batch norm against vanilla: no pair of runs has recorded grad_mean_abs of layers"
        in lines
    )
    assert any(line.startswith("left out  broken: result.json is not whole or no JSON") for line in lines)
    folder = Path("study/report").resolve()
    assert f"written   {folder}/report.html" in lines
    assert f"written   {folder}/tables/  (4 files)" in lines
    assert (folder / "report.html").is_file()
    assert not (folder / "figures").exists()


def test_the_thesiss_conclusions_are_printed_and_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(Path("study"), 0.1135, 0.985, experiment="mlp_lr_high")
    main(["report", "--thesis", "study", "--format", "none"])
    output = " ".join(capsys.readouterr().out.split())
    assert "supported Batch norm allows learning rate 0.1 where the vanilla MLP does not train." in output
    assert "test accuracy 11.35 (thesis 11.4); batch norm: 1 of 1 learned, test accuracy 98.50 (thesis 98.6)" in output
    assert "runs: mlp_lr_high/mnist-vanilla-seed0, mlp_lr_high/mnist-bn-seed0" in output
    assert "The thesis's conclusions: 1 supported, 45 without runs." in output
    assert "written" not in output
    assert {path.name for path in Path("study").iterdir()} == {"mlp_lr_high"}


def test_tables_alone(capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(Path("study"), 0.1135, 0.985, experiment="mlp_lr_high")
    write_pair(Path("study"), 0.1, 0.86, experiment="cnn_lr_high", dataset="cifar10_jpeg")
    main(["report", "study", "--format", "none"])
    output = capsys.readouterr().out
    assert output.count("Test accuracy of the") == 2
    assert "conclusions" not in output
    assert "CIFAR-10 (jpeg): 2 test accuracies off the thesis's by 0.25 points on average, at most by -0.50" in output
    assert not Path("study/report").exists()


def test_several_folders_and_another_output(capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(Path("a"), 0.98, 0.982)
    write_pair(Path("b"), 0.8, 0.82, dataset="svhn")
    main(["report", "a", "b", "--output", "docs/results", "--format", "csv"])
    assert "4 runs on MNIST, SVHN; 0 left out." in capsys.readouterr().out
    assert Path("docs/results/tables/runs.csv").read_text().count("\n") == 5
    assert not Path("a/report").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: FOLDER"),
        (["nowhere"], "nowhere does not exist"),
        (["empty"], "no run that ended lies below"),
        (["study", "--format", "pdf"], "--format pdf: unknown pdf; there are md, csv, html, png, svg, and none."),
        (["study", "--formats", "csv"], "unrecognized arguments: --formats"),
        (["study", "--output", "file", "--format", "csv"], "file cannot be written"),
        (["study", "--output", "file/below", "--format", "csv"], "file/below cannot be written"),
    ],
)
def test_what_cannot_be_used_is_said(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(Path("study"), 0.98, 0.982)
    Path("empty").mkdir()
    Path("file").write_text("")
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        run(["report", *words])
    with pytest.raises(SystemExit) as ended:
        main(["report", *words])
    output, errors = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert errors.startswith("bnlab: error: ")
    assert Path("file").read_text() == ""


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["report", "--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert all(flag in output for flag in ("--output DIR", "--thesis", "--format LIST", "--quantity NAME", "FOLDER"))


@pytest.mark.slow
def test_the_command_loads_without_torch() -> None:
    code = "import sys, bnlab.cli.report; print({'torch', 'matplotlib', 'jinja2', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_on_runs_of_fit_and_on_their_results(capsys: pytest.CaptureFixture[str]) -> None:
    """Runs as `bnlab fit` leaves them; then with what a study writes beside them, in its own words."""
    folders = [
        fit("--model.batch_norm", flag, "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "2")
        for flag in ("false", "true")
    ]
    capsys.readouterr()
    main(["report", "tb_logs", "--format", "md,svg,html"])
    assert "2 runs on digits; 0 left out." in capsys.readouterr().out
    text = Path("tb_logs/report/report.md").read_text()
    assert "2 runs without test accuracy: bnlab fit does not test." in text
    assert "All runs depart from the thesis's protocol: trainer.max\\_epochs=2." in text
    assert len(list(Path("tb_logs/report/figures").glob("*.svg"))) == 4

    for folder, batch_norm, test_acc in zip(folders, (False, True), (0.75, 0.875), strict=True):
        identity = {"experiment": "mlp_relu", "architecture": "mlp", "dataset": "digits", "batch_norm": batch_norm}
        identity |= {"seed": 0, "batch_size": 64, "overrides": {"trainer.max_epochs": 2}}
        task = {"identity": identity, "words": ["fit"], "study": {"engine": "local", "jobs": 2, "threads": 1}}
        write_result(folder, of_ended_run(folder, task, {"test_acc": test_acc, "test_loss": 0.5}))
    main(["report", "tb_logs", "--format", "csv"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "ReLU" in line)
    assert " ".join(row.split()) == "Activation function ReLU 75.00 87.50 +12.50"
    rows = list(csv.DictReader(Path("tb_logs/report/tables/runs.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert all(row["hardware"].endswith("2 runs at once)") and float(row["seconds_per_epoch"]) > 0 for row in rows)
