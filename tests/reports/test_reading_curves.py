"""Curves read from records: of a run that was resumed, of broken and cut-off files."""

from pathlib import Path

import pytest

from bnlab.reports.reading.curves import read_curves
from bnlab_callbacks.record_file import Row
from tests.reports.study_files import curve_rows, write_records, write_run

Rows = list[tuple[int, int, str, str, float]]


def test_curves_of_a_run(tmp_path: Path) -> None:
    gradients = [{"00_net.fc1": 0.1, "01_net.logits": 0.2}, {"00_net.fc1": 0.3, "01_net.logits": 0.4}]
    folder = write_run(tmp_path, curve_rows([0.5, 0.7, 0.6], losses=[2.0, 1.0, 0.5], gradients=gradients))
    curves = read_curves(folder)
    assert curves.problem == ""
    assert curves.by_epoch("val_acc") == ([1, 2, 3], [0.5, 0.7, 0.6])
    assert curves.by_epoch("train_loss") == ([1, 2, 3], [2.0, 1.0, 0.5])
    table = curves.table("grad_mean_abs")
    assert table is not None
    assert table.layers == ("00_net.fc1", "01_net.logits")
    assert table.steps.tolist() == [0, 10]
    assert table.values.tolist() == [[0.1, 0.3], [0.2, 0.4]]
    assert curves.table("grad_rms") is None


def test_the_last_values_of_a_resumed_run_count(tmp_path: Path) -> None:
    first: Rows = [
        (0, 0, "grad_mean_abs", "00_a", 1.0),
        (9, 0, "val_acc", "", 0.1),
        (10, 1, "grad_mean_abs", "00_a", 2.0),
        (19, 1, "val_acc", "", 0.2),
        (20, 2, "grad_mean_abs", "00_a", 3.0),
        (29, 2, "val_acc", "", 0.3),
    ]
    again: Rows = [(10, 1, "grad_mean_abs", "00_a", 2.5), (19, 1, "val_acc", "", 0.25)]
    write_records(tmp_path, first + again)
    curves = read_curves(tmp_path)
    assert curves.by_epoch("val_acc") == ([1, 2], [0.1, 0.25])
    table = curves.table("grad_mean_abs")
    assert table is not None
    assert (table.steps.tolist(), table.values.tolist()) == ([0, 10], [[1.0, 2.5]])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no records.csv"),
        (b"a,b,c\n1,2,3\n", "no table of records"),
        (b"step,epoch,wall_time,quantity,layer,value\n1,0,1.0,val_acc,,0.5\n1,x,1.0,val_acc,,0.6\n", "invalid literal"),
        (b"step,epoch,wall_time,quantity,layer,value\n1,0,1.0,val_acc,,0.5\n1,0\n", "not enough values"),
        (b"step,epoch,wall_time,quantity,layer,value\n1,0,1.0,val_acc,,0.5\n\xff\xfe\n", "is broken"),
    ],
)
def test_broken_records_are_named_and_what_came_before_stays(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "records.csv").write_bytes(content)
    curves = read_curves(tmp_path)
    assert problem in curves.problem
    if content is not None and content.startswith(b"step"):
        assert curves.by_epoch("val_acc") == ([1], [0.5])


def test_a_line_that_a_kill_cut_off_is_no_problem(tmp_path: Path) -> None:
    write_records(tmp_path, curve_rows([0.5]))
    with (tmp_path / "records.csv").open("a") as file:
        file.write("19,1,1.0,val_a")
    assert read_curves(tmp_path).by_epoch("val_acc") == ([1], [0.5])
    assert read_curves(tmp_path).problem == ""


def test_parquet_is_read_too(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [Row(9, 0, 1.8e9, "val_acc", "", 0.5)]
    columns = dict(zip(Row._fields, zip(*rows, strict=True), strict=True))
    parquet.write_table(pyarrow.table(columns), tmp_path / "records.parquet")
    assert read_curves(tmp_path).by_epoch("val_acc") == ([1], [0.5])
