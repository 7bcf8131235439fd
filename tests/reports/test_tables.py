"""The tables: their cells against text written by hand, their files read back."""

import csv
import io
from pathlib import Path

import pytest

from bnlab.reports import accuracy_table, batch_size_table, time_table, to_csv, to_markdown, to_text
from bnlab.reports.estimates import Estimate, compare_accuracies, sign_verdict
from bnlab.reports.reading.collection import Collection, Line
from bnlab.reports.tables.table import Cell, Table, escape, estimate_words
from tests.reports.study_files import collected, write_fit_run, write_pair, write_run


def rows(table: Table) -> dict[str, list[str]]:
    """By the last head of each row, its cells as in a terminal."""
    lines = to_text(table).splitlines()
    text = {line: [" ".join(part.split()) for part in line.split("  ") if part.strip()] for line in lines[4:]}
    return {parts[table.heads - 1]: parts[table.heads :] for parts in text.values()}


def records(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def test_table_b1_of_one_seed(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.9815, 0.9826)  # the thesis: 98.0, 98.2
    write_pair(tmp_path, 0.1135, 0.9850, experiment="mlp_lr_high")  # 11.4, 98.6
    write_pair(tmp_path, 0.98, 0.9674, experiment="mlp_lr_low")  # 97.6, 97.7
    table = accuracy_table(collected(tmp_path), "mlp")
    assert table.groups == (("", 2), ("MNIST", 3))
    found = rows(table)
    assert found["ReLU"] == ["98.15 (98.0)", "98.26 (98.2)", "+0.11 (+0.2) within the interval"]
    assert found["high"][0] in ("11.35 (11.4)", "— (9.8)")  # two experiments have the value "high"
    cells = {(row[0].text, row[1].text): row[2:] for row in table.rows}
    assert [cell.text for cell in cells["Initial learning rate", "high"]] == ["11.35", "98.50", "+87.15"]
    assert cells["Initial learning rate", "high"][2] == Cell("+87.15", "+87.2", "agree", "agree")
    assert cells["Initial learning rate", "low"][2] == Cell("−1.26", "+0.1", "differ", "differ")
    assert [cell.strong for cell in cells["Initial learning rate", "low"]] == [True, False, False]
    missing = cells["Weight initialization", "low"]
    assert missing == (Cell("—", "11.4"), Cell("—", "98.4"), Cell("—", "+87.0"))
    assert len(table.rows) == 9


def test_table_b1_of_three_seeds(tmp_path: Path) -> None:
    for seed, (vanilla, batch_norm) in enumerate([(0.980, 0.985), (0.982, 0.986), (0.987, 0.985)]):
        write_pair(tmp_path, vanilla, batch_norm, seeds=[seed])
    table = accuracy_table(collected(tmp_path), "mlp")
    # V 98.3 ± 0.8957 (by hand, in test_estimates); B 98.5333, s² = 0.003333, ± 4.302653 · √(0.003333 / 3) = 0.1434;
    # B − V: √(0.043333 + 0.001111) = 0.21082, with 2.1 degrees of freedom t = 4.11
    assert rows(table)["ReLU"] == [
        "98.30 ± 0.90 (98.0)",
        "98.53 ± 0.14 (98.2)",
        "+0.23 ± 0.87 (+0.2) within the interval",
    ]
    (record,) = [
        record for record in records(table) if record["experiment"] == "mlp_relu" and record["dataset"] == "mnist"
    ]
    assert record["vanilla_percent"] == "98.3"
    assert float(record["vanilla_interval"]) == pytest.approx(0.895669, abs=1e-5)
    assert (record["vanilla_n"], record["vanilla_thesis"], record["interval_from"]) == ("3", "98.0", "seeds")
    assert any("n = 3 a cell" in note for note in table.notes)
    assert "6 runs, seeds 0–2; 2026-11-25." in table.notes


def test_the_csv_has_every_cell_of_the_thesis(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.84, 0.85, experiment="cnn_relu", dataset="cifar10_jpeg")
    found = records(accuracy_table(collected(tmp_path), "cnn"))
    assert len(found) == 9 * 4
    assert {record["dataset"] for record in found} == {"cifar10_jpeg", "mnist", "svhn", "cifar100"}
    ours = [record for record in found if record["vanilla_percent"]]
    assert [(record["experiment"], record["dataset"]) for record in ours] == [("cnn_relu", "cifar10_jpeg")]
    assert (ours[0]["vanilla_thesis"], ours[0]["batch_norm_thesis"], ours[0]["difference"]) == ("83.5", "85.1", "1.0")


def test_diverged_runs_are_marked_and_their_accuracy_stands(tmp_path: Path) -> None:
    write_run(tmp_path, experiment="mlp_init_high", status="diverged", test_acc=0.098)
    write_run(tmp_path, experiment="mlp_init_high", status="diverged", test_acc=0.0981, seed=1)
    write_run(tmp_path, experiment="mlp_init_high", batch_norm=True, test_acc=0.9647)
    table = accuracy_table(collected(tmp_path), "mlp")
    (cell,) = [row[2] for row in table.rows if row[0].text == "Weight initialization" and row[1].text == "high"]
    assert cell == Cell("9.80 ± 0.06 †", "9.8")
    assert any(note.startswith("† 2 runs diverged") for note in table.notes)


def test_runs_without_test_accuracy_are_missing_with_a_hint(tmp_path: Path) -> None:
    write_fit_run(tmp_path / "v")
    table = accuracy_table(collected(tmp_path), "mlp")
    assert rows(table)["ReLU"] == ["— (98.0)", "— (98.2)", "— (+0.2)"]
    assert any(note.startswith("1 run without test accuracy: bnlab fit does not test.") for note in table.notes)


def test_what_the_thesis_has_not_stands_below(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.98, 0.99, dataset="digits")
    write_pair(tmp_path, 0.97, 0.96, experiment="mlp_mine")
    write_pair(tmp_path, 0.95, 0.96, overrides={"model.lr": 0.3})
    table = accuracy_table(collected(tmp_path), "mlp")
    assert [row[1].text for row in table.rows[9:]] == ["mlp_relu, model.lr=0.3", "mlp_mine"]
    assert [row[0].text for row in table.rows[9:]] == ["Activation function", "Not in the thesis"]
    assert [cell.thesis for row in table.rows[9:] for cell in row] == [""] * 16
    digits = next(row for row in table.rows if row[1].text == "ReLU")[5:]
    assert digits == (Cell("98.00"), Cell("99.00", strong=True), Cell("+1.00"))


def test_a_protocol_that_all_depart_from_is_said(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.98, 0.99, overrides={"trainer.max_epochs": 3})
    notes = accuracy_table(collected(tmp_path), "mlp").notes
    assert "All runs depart from the thesis's protocol: trainer.max_epochs=3." in notes


@pytest.mark.parametrize(
    ("ours", "thesis", "verdict"),
    [
        (Estimate(0.5, 0.2, 3), 0.2, "agree"),
        (Estimate(-0.5, 0.2, 3), -0.2, "agree"),
        (Estimate(0.5, 0.2, 3), -0.2, "differ"),
        (Estimate(0.5, 0.2, 3), 0.0, "differ"),
        (Estimate(0.1, 0.2, 3), 0.2, "within the interval"),
        (Estimate(0.0, None, 1), 0.2, "within the interval"),
        (Estimate(0.1, None, 1), 0.2, "agree"),
        (Estimate(0.1, 0.0, 3), 0.2, "agree"),
    ],
)
def test_signs(ours: Estimate, thesis: float, verdict: str) -> None:
    assert sign_verdict(ours, thesis) == verdict


def test_the_thesiss_gain_is_rounded_as_there(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.98, 0.99)
    assert compare_accuracies(collected(tmp_path), Line("mlp", "mlp_lr_high"), "mnist").thesis_gain == 87.2
    assert compare_accuracies(collected(tmp_path), Line("mlp", "mlp_lr_high", (), 32), "mnist").thesis_gain is None


def test_accuracy_by_batch_size(tmp_path: Path) -> None:
    for size, vanilla, batch_norm in ((32, 0.979, 0.984), (64, 0.98, 0.983), (1024, 0.975, 0.97)):
        write_pair(tmp_path, vanilla, batch_norm, batch_size=size)
    write_pair(tmp_path, 0.9, 0.95, dataset="digits")  # of one size alone
    found = collected(tmp_path)
    table = batch_size_table(found, "mlp")
    assert table is not None
    assert table.groups == (("", 1), ("MNIST", 3))
    assert list(rows(table)) == ["32", "64", "128", "256", "512", "1024"]
    assert rows(table)["32"] == ["97.90", "98.40", "+0.50"]
    assert rows(table)["64"] == ["98.00 (98.0)", "98.30 (98.2)", "+0.30 (+0.2) within the interval"]
    assert rows(table)["256"] == ["—", "—", "—"]
    assert rows(table)["1024"] == ["97.50", "97.00", "−0.50"]
    assert batch_size_table(found, "cnn") is None


def test_no_sweep_no_table(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.98, 0.99)
    assert batch_size_table(collected(tmp_path), "mlp") is None


def test_table_b3(tmp_path: Path) -> None:
    for dataset, times in (("mnist", (1.0, 1.3)), ("cifar10_jpeg", (2.0, 2.2))):
        write_run(tmp_path, dataset=dataset, seconds_per_epoch=times[0])
        write_run(tmp_path, dataset=dataset, seconds_per_epoch=times[1], batch_norm=True)
    write_run(tmp_path, seconds_per_epoch=0.5, batch_size=256)
    write_run(tmp_path, experiment="mlp_elu", seconds_per_epoch=99.0)  # the tables are of the baseline
    table = time_table(collected(tmp_path), "mlp")
    assert table.groups == (("", 2), ("MNIST", 2), ("CIFAR-10 (jpeg)", 2))
    assert rows(table)["64"] == ["20.0 % (27 %)", "1.00 (1.8)", "1.30 (2.4)", "2.00 (1.8)", "2.20 (2.3)"]
    assert rows(table)["256"] == ["— (38 %)", "0.500 (1.2)", "— (1.8)", "— (1.4)", "— (1.8)"]
    mnist = next(one for one in records(table) if (one["dataset"], one["batch_size"]) == ("mnist", "64"))
    assert mnist["overhead_percent"] == "30.0"
    assert len(records(table)) == 6 * 4
    assert any("Intel Core i7-2600K" in note for note in table.notes)


def test_table_b4_without_runs_is_the_thesiss() -> None:
    table = time_table(Collection(Path(), ()), "cnn")
    assert rows(table)["32"] == ["— (19.7 %)"]
    assert rows(table)["64"] == ["— (19.0 %)"]
    assert table.notes[0] == "No runs of the baseline (ReLU)."


def test_times_of_several_machines_are_not_compared_silently(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_run(tmp_path, batch_norm=True, hardware={"name": "Xeon", "cpus": 8})
    notes = time_table(collected(tmp_path), "mlp").notes
    assert any("several machines" in note for note in notes)
    assert any(
        note.startswith("Hardware: AMD EPYC (2 cpus, 1 thread) (1 run); Xeon (8 cpus) (1 run).") for note in notes
    )


def test_markdown(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.9815, 0.9850, experiment="mlp_mine|<b>")
    text = to_markdown(accuracy_table(collected(tmp_path), "mlp"))
    lines = text.splitlines()
    assert lines[0] == "## Test accuracy of the MLP in percent (thesis: table B.1)"
    assert lines[2] == "| Parameter | Value | MNIST V | MNIST B | MNIST B − V |"
    assert lines[3] == "| :--- | :--- | ---: | ---: | ---: |"
    assert lines[5] == "| Activation function | ReLU | — (98.0) | — (98.2) | — (+0.2) |"
    assert lines[13] == r"| Not in the thesis | mlp\_mine\|&lt;b&gt; | 98.15 | **98.50** | +0.35 |"


def test_escaped_text_is_text() -> None:
    assert escape("a|b_c*d`e<f>&\n[g](h)$i$") == r"a\|b\_c\*d\`e&lt;f&gt;&amp; \[g\](h)\$i\$"


def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.98, 0.99, experiment="=cmd|' /C calc'!A0", architecture="mlp")
    table = accuracy_table(collected(tmp_path), "mlp")
    assert [one["experiment"] for one in records(table) if one["dataset"] == "mnist"][9] == "'=cmd|' /C calc'!A0"


def test_words_of_an_estimate() -> None:
    assert estimate_words(Estimate(-0.5, 0.25, 3), signed=True) == "−0.50 ± 0.25"
    assert estimate_words(Estimate(0.5, 0.25, 1, "test images"), signed=True) == "+0.50"
    assert estimate_words(Estimate(1.2345, None, 1, "none"), digits=3) == "1.234"
