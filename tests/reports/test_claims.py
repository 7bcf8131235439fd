"""The thesis's conclusions: each rule on runs made for it, and what is said where they do not decide."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnlab.reports import CLAIMS, Conclusion, collect, judge_all, to_csv, to_markdown, write_report
from bnlab.reports.claims.batch_sizes import sign_of
from bnlab.reports.claims.claim import Claim, Evidence, Finding, at_least, conclude, higher
from bnlab.reports.claims.gradients import early_size, larger, spread
from bnlab.reports.claims.training import epochs_to, fewer, sooner
from bnlab.reports.estimates import Estimate
from bnlab.reports.pages.conclusions import conclusions_table, conclusions_text
from bnlab.reports.reading.curves import LayerTable, read_curves
from tests.reports.study_files import Values, collected, curve_rows, write_fit_run, write_pair, write_run

LR = "Batch norm allows learning rate 0.1 where the vanilla MLP does not train."
SIGMA = "Initialized with σ = 1, the MLP trains only with batch norm."


def judged(root: Path, statement: str) -> Conclusion:
    (claim,) = [claim for claim in CLAIMS if claim.statement == statement]
    (found,) = judge_all(collected(root), (claim,))
    return found


def verdicts(found: Conclusion) -> list[str]:
    return [finding.verdict for finding in found.findings]


@pytest.mark.parametrize(
    ("vanilla", "batch_norm", "verdict"),
    [
        ([0.1135, 0.1135], [0.985, 0.984], "supported"),
        ([0.17], [0.985], "supported"),  # 1.5 × 11.35 % is 17.0 %
        ([0.1704], [0.985], "contradicted"),
        ([0.98, 0.97], [0.985, 0.984], "contradicted"),
        ([0.1135], [0.1135], "contradicted"),
        ([0.1135, 0.98], [0.985, 0.984], "cannot tell"),
        ([0.1135, 0.1135], [0.985, 0.1135], "cannot tell"),
    ],
)
def test_what_trains_only_with_batch_norm(
    tmp_path: Path, vanilla: Sequence[float], batch_norm: Sequence[float], verdict: str
) -> None:
    for flag, values in ((False, vanilla), (True, batch_norm)):
        for seed, value in enumerate(values):
            write_run(tmp_path, experiment="mlp_lr_high", batch_norm=flag, seed=seed, test_acc=value)
    found = judged(tmp_path, LR)
    assert found.verdict == verdict
    (finding,) = found.findings
    assert finding.scope == "MNIST"
    assert "(thesis 11.4)" in finding.numbers
    assert "(thesis 98.6)" in finding.numbers
    assert finding.numbers.endswith("chance 11.35")
    assert len(found.runs) == len(vanilla) + len(batch_norm)


def test_a_diverged_run_did_not_learn_whatever_its_accuracy(tmp_path: Path) -> None:
    write_run(tmp_path, experiment="mlp_init_high", status="diverged", test_acc=0.4)
    write_run(tmp_path, experiment="mlp_init_high", batch_norm=True, test_acc=0.9647)
    found = judged(tmp_path, SIGMA)
    assert found.verdict == "supported"
    assert "vanilla: 0 of 1 learned, 1 diverged, test accuracy 40.00" in found.findings[0].numbers


def test_whether_a_net_learns_can_be_told_without_a_test(tmp_path: Path) -> None:
    write_fit_run(tmp_path / "v", experiment="mlp_lr_high", val_acc=0.11)
    write_fit_run(tmp_path / "b", experiment="mlp_lr_high", val_acc=0.98, batch_norm=True)
    found = judged(tmp_path, LR)
    assert found.verdict == "supported"
    assert "validation accuracy 11.00" in found.findings[0].numbers


def test_chance_is_unknown_for_unknown_images(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.1, 0.9, experiment="mlp_lr_high", dataset="faces")
    found = judged(tmp_path, LR)
    assert found.verdict == "cannot tell"
    assert "chance unknown" in found.findings[0].numbers


def test_datasets_that_disagree_cannot_tell(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.1135, 0.98, experiment="mlp_lr_high")
    write_pair(tmp_path, 0.5, 0.52, experiment="mlp_lr_high", dataset="cifar10_jpeg")
    found = judged(tmp_path, LR)
    assert found.verdict == "cannot tell"
    assert found.reason == "the datasets disagree: supported on MNIST; contradicted on CIFAR-10 (jpeg)"
    write_pair(tmp_path / "more", 0.5, 0.52, experiment="mlp_lr_high", dataset="faces")
    assert judged(tmp_path, LR).verdict == "cannot tell"


def test_a_dataset_that_cannot_tell_is_no_objection(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.1135, 0.98, experiment="mlp_lr_high")
    write_pair(tmp_path, 0.1, 0.98, experiment="mlp_lr_high", dataset="faces")
    found = judged(tmp_path, LR)
    assert (found.verdict, verdicts(found), found.reason) == ("supported", ["supported", "cannot tell"], "")


@pytest.mark.parametrize("settings", [{"overrides": {"model.lr": 0.3}}, {"batch_size": 32}, {"batch_norm": True}])
def test_other_runs_are_no_evidence(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_run(tmp_path, experiment="mlp_lr_high", **settings)
    found = judged(tmp_path, LR)
    assert (found.verdict, found.findings) == ("cannot tell", ())
    assert found.reason == (
        "runs are missing; bnlab study --configs mlp_lr_high --datasets mnist --batch_norm both makes them"
    )


@pytest.mark.parametrize(
    ("gain", "is_higher", "is_at_least"),
    [
        (Estimate(1.0, 0.5, 3), "supported", "supported"),
        (Estimate(0.0, 0.4, 3), "cannot tell", "supported"),
        (Estimate(0.0, 0.6, 3), "cannot tell", "cannot tell"),
        (Estimate(-0.5, 0.4, 3), "contradicted", "cannot tell"),
        (Estimate(-1.0, 0.4, 3), "contradicted", "contradicted"),
        (Estimate(5.0, None, 1), "cannot tell", "cannot tell"),
    ],
)
def test_gains(gain: Estimate, is_higher: str, is_at_least: str) -> None:
    assert (higher(gain), at_least(gain)) == (is_higher, is_at_least)


def test_which_of_two_is_higher(tmp_path: Path) -> None:
    statement = "With dropout, the vanilla CNN generalizes better than with batch norm."
    write_pair(tmp_path, 0.878, 0.855, experiment="cnn_dropout", dataset="cifar10_jpeg")
    found = judged(tmp_path, statement)
    assert found.verdict == "supported"
    # √(0.878 · 0.122 + 0.855 · 0.145) / 100 · 1.959964 = 0.94189 points
    assert found.findings[0].numbers == (
        "cnn_dropout vanilla 87.80 (n = 1; thesis 87.8) against cnn_dropout batch norm 85.50 (n = 1; thesis 87.3): "
        "+2.30 points, 95 % interval +1.36 to +3.24 (one seed, so of test images alone)"
    )
    write_pair(tmp_path, 0.995, 0.996, experiment="cnn_dropout")
    assert verdicts(judged(tmp_path, statement)) == ["cannot tell", "supported"]


def test_relu_against_both_kinds_of_elu(tmp_path: Path) -> None:
    statement = "The MLP with ReLU and batch norm matches or beats ELU, vanilla and batch norm."
    write_pair(tmp_path, 0.5, 0.53, dataset="cifar10")
    assert judged(tmp_path, statement).findings == ()
    write_pair(tmp_path, 0.5, 0.5, experiment="mlp_elu", dataset="cifar10")
    assert judged(tmp_path, statement).verdict == "supported"
    write_pair(tmp_path / "other", 0.5, 0.53, dataset="svhn")
    write_pair(tmp_path / "other", 0.5, 0.6, experiment="mlp_elu", dataset="svhn")
    assert verdicts(judged(tmp_path / "other", statement)) == ["contradicted"]


def test_a_smaller_gain(tmp_path: Path) -> None:
    statement = "At learning rate 0.001 batch norm gains the MLP less than at 0.01."
    write_pair(tmp_path, 0.45, 0.52, dataset="cifar10")
    write_pair(tmp_path, 0.49, 0.493, experiment="mlp_lr_low", dataset="cifar10")
    assert judged(tmp_path, statement).verdict == "supported"
    write_pair(tmp_path, 0.80, 0.81, dataset="svhn")
    write_pair(tmp_path, 0.75, 0.82, experiment="mlp_lr_low", dataset="svhn")
    found = judged(tmp_path, statement)
    assert (verdicts(found), found.verdict) == (["contradicted", "supported"], "cannot tell")


SIZES = (32, 64, 128, 256, 512, 1024)


def sweep(root: Path, vanilla: Sequence[float], batch_norm: Sequence[float], **settings: Any) -> None:
    for batch_size, v, b in zip(SIZES, vanilla, batch_norm, strict=False):
        write_pair(root, v, b, batch_size=batch_size, **settings)


def test_accuracy_over_batch_sizes(tmp_path: Path) -> None:
    sweep(tmp_path, [0.974, 0.976, 0.978, 0.98, 0.981, 0.984], [0.985, 0.984, 0.982, 0.981, 0.979, 0.978])
    found = judged(tmp_path, "With batch norm, smaller batches make the MLP more accurate.")
    assert found.verdict == "supported"
    assert "-0.15 points for each doubling" in found.findings[0].numbers  # by hand: −2.55 / 17.5 = −0.1457
    assert found.findings[0].numbers.endswith("of 6 runs with batches of 32 to 1024")
    assert judged(tmp_path, "Smaller batches make the vanilla MLP less accurate.").verdict == "supported"
    below = judged(tmp_path, "Batch norm makes the MLP more accurate at batch sizes below 256.")
    assert below.verdict == "supported"
    assert [part.partition(":")[0] for part in below.findings[0].numbers.split("; ")] == [
        *("batch 32", "batch 64", "batch 128")
    ]


def test_too_few_batch_sizes(tmp_path: Path) -> None:
    sweep(tmp_path, [0.97], [0.98])
    assert judged(tmp_path, "With batch norm, smaller batches make the MLP more accurate.").findings == ()
    sweep(tmp_path / "two", [0.96, 0.97], [0.985, 0.97], dataset="svhn")
    found = judged(tmp_path / "two", "With batch norm, smaller batches make the MLP more accurate.")
    assert found.verdict == "cannot tell"
    assert "too few runs for a slope" in found.findings[0].numbers


def test_both_nets_must_gain_from_small_batches(tmp_path: Path) -> None:
    statement = "Smaller batches make the CNN more accurate, vanilla and with batch norm."
    falling, rising = [0.86, 0.85, 0.84, 0.83, 0.82, 0.81], [0.81, 0.82, 0.83, 0.84, 0.85, 0.86]
    sweep(tmp_path / "a", falling, falling, experiment="cnn_relu", dataset="cifar10")
    sweep(tmp_path / "b", falling, rising, experiment="cnn_relu", dataset="cifar10")
    assert judged(tmp_path / "a", statement).verdict == "supported"
    assert judged(tmp_path / "b", statement).verdict == "contradicted"


def test_one_size_where_batch_norm_is_worse_contradicts(tmp_path: Path) -> None:
    statement = "Batch norm makes the CNN more accurate at every batch size."
    sweep(tmp_path, [0.8, 0.8, 0.8, 0.8], [0.9, 0.9, 0.9, 0.7], experiment="cnn_relu", dataset="cifar10")
    assert judged(tmp_path, statement).verdict == "contradicted"


@pytest.mark.parametrize(
    ("overheads", "mlp", "cnn"),
    [
        ([0.20, 0.27, 0.35, 0.38, 0.39, 0.41], "supported", "contradicted"),  # table B.3
        ([0.197, 0.19, 0.164, 0.155, 0.153, 0.152], "contradicted", "supported"),  # table B.4
        ([0.2, 0.3, 0.1, 0.3, 0.2, 0.25], "cannot tell", "cannot tell"),
    ],
)
def test_overhead_over_batch_sizes(tmp_path: Path, overheads: Sequence[float], mlp: str, cnn: str) -> None:
    for experiment in ("mlp_relu", "cnn_relu"):
        for batch_size, overhead in zip(SIZES, overheads, strict=True):
            common = {"experiment": experiment, "batch_size": batch_size}
            write_run(tmp_path, seconds_per_epoch=2.0, **common)
            write_run(tmp_path, seconds_per_epoch=2.0 * (1 + overhead), batch_norm=True, **common)
    assert judged(tmp_path, "In the MLP, batch norm's overhead grows with the batch size.").verdict == mlp
    assert judged(tmp_path, "In the CNN, batch norm's overhead shrinks with the batch size.").verdict == cnn


def test_signs_of_slopes() -> None:
    assert sign_of(None, True) == "cannot tell"
    assert sign_of(Estimate(1.0, 1.5, 6), True) == "cannot tell"
    assert [sign_of(Estimate(1.0, 0.5, 6), rising) for rising in (True, False)] == ["supported", "contradicted"]


def test_epochs_to_an_accuracy() -> None:
    assert epochs_to([0.5, 0.8, 0.7, 0.9], 0.8) == 2
    assert epochs_to([0.5], 0.8) is None


@pytest.mark.parametrize(
    ("many", "few", "verdict"),
    [
        ([9], [6], "supported"),
        ([9], [7], "cannot tell"),  # more than two thirds
        ([3], [1], "cannot tell"),  # less than three epochs
        ([6], [9], "contradicted"),
        ([20, 21, 22], [10, 11, 12], "supported"),
        ([10, 11, 12], [20, 21, 22], "contradicted"),
        ([20, 5, 12], [10, 11, 12], "cannot tell"),
        ([20, 20], [10], "supported"),
    ],
)
def test_fewer_epochs(many: Sequence[float], few: Sequence[float], verdict: str) -> None:
    assert fewer(many, few) == verdict


def test_runs_that_never_got_there_speak_for_the_others_only() -> None:
    assert sooner([[None], [5]], [[40], [30]]) == "supported"
    assert sooner([[None], [20]], [[10], [30]]) == "cannot tell"  # it might have needed 30 too
    assert sooner([[5], [None]], [[30], [40]]) == "contradicted"
    assert sooner([[20], [None]], [[30], [10]]) == "cannot tell"


def test_who_converges_sooner(tmp_path: Path) -> None:
    slow = [0.1 * step for step in range(1, 10)] + [0.96]
    write_run(tmp_path, curve_rows(slow), experiment="mlp_sigmoid")
    write_run(tmp_path, curve_rows([0.5, 0.97, 0.96]), experiment="mlp_sigmoid", batch_norm=True)
    found = judged(tmp_path, "Batch norm lets the sigmoid MLP converge in fewer epochs.")
    assert found.verdict == "supported"
    assert found.findings[0].numbers == (  # 99 % of 0.96
        "epochs to 95.04 % validation accuracy: mlp_sigmoid vanilla 10 (n = 1), mlp_sigmoid batch norm 2 (n = 1)"
    )


def table(*rows: Sequence[float]) -> LayerTable:
    steps = np.arange(0.0, 10 * len(rows[0]), 10)
    return LayerTable(np.array(rows), steps, tuple(f"{place:02d}_a" for place in range(len(rows))))


def test_the_spread_of_gradients() -> None:
    # log10 −1, −2, −3: standard deviation 1; constant: 0
    assert spread(table([0.1, 0.01, 0.001], [0.1, 0.1, 0.1]), 100) == pytest.approx(0.5)
    assert spread(table([0.1, 0.01, 0.001, 1e-9]), 20) == pytest.approx(1.0)
    assert spread(table([0.1, 0.0, math.nan, 0.1]), 100) is None


def test_the_size_of_gradients_early_in_training() -> None:
    steps = [0.9, 0.01, 0.0001] + [1.0] * 18  # 0, 10, …, 200; a tenth of 200 is 20
    assert early_size(table(steps, [7.0] * 21), 200) == pytest.approx(0.001)  # √(0.01 · 0.0001), of the first layer
    assert early_size(table([0.9, 0.0, math.inf, *[1.0] * 18], [7.0] * 21), 200) is None
    assert early_size(table([0.9] * 21), 200) is None  # one layer is the last


@pytest.mark.parametrize(
    ("small", "large_values", "verdict"),
    [
        ([1.0], [2.0], "supported"),
        ([1.0], [1.9], "cannot tell"),
        ([2.0], [1.0], "contradicted"),
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], "supported"),
        ([1.0, 3.0, 0.9], [2.0, 2.1, 1.9], "cannot tell"),
        ([0.0, 0.0], [0.0, 0.0], "cannot tell"),
    ],
)
def test_larger_by_a_factor_or_by_seeds(small: Sequence[float], large_values: Sequence[float], verdict: str) -> None:
    assert larger(small, large_values, 2.0) == verdict


def gradients(*sizes: float) -> list[Values]:
    return [{"00_net.fc1": value, "01_net.logits": value} for value in sizes]


def test_steadier_gradients(tmp_path: Path) -> None:
    vanilla, batch_norm = gradients(1, 0.01, 0.0001), gradients(0.1, 0.09, 0.11, 1e-9)
    write_run(tmp_path, curve_rows([0.5] * 3, gradients=vanilla), experiment="cnn_relu")
    write_run(tmp_path, curve_rows([0.5] * 4, gradients=batch_norm), experiment="cnn_relu", batch_norm=True)
    found = judged(tmp_path, "Batch norm keeps the CNN's gradients steadier over training.")
    assert found.verdict == "supported"
    assert "vanilla 2.00 (n = 1); batch norm 0.04 (n = 1)" in found.findings[0].numbers  # steps that both reached


def test_larger_gradients_of_smaller_weights(tmp_path: Path) -> None:
    for experiment, value in (("mlp_init_high", 0.001), ("mlp_init_low", 0.01)):
        rows = curve_rows([0.5] * 20, gradients=gradients(*[value] * 20))
        write_run(tmp_path, rows, experiment=experiment, batch_norm=True)
    found = judged(tmp_path, "With batch norm, smaller initial weights give the MLP larger gradients.")
    assert (found.verdict, len(found.runs)) == ("supported", 2)
    assert found.findings[0].numbers.endswith("mlp_init_high 0.001 (n = 1), mlp_init_low 0.01 (n = 1)")


def all_experiments(root: Path, cnn: dict[str, tuple[float, float]]) -> None:
    names = ("sigmoid", "relu", "elu", "lr_high", "lr_low", "init_high", "init_low", "dropout", "weight_decay")
    for name in names:
        write_pair(root, *cnn.get(name, (0.8, 0.85)), experiment=f"cnn_{name}", dataset="cifar10")


def test_the_best_of_all(tmp_path: Path) -> None:
    statement = "The most accurate CNN of all is vanilla with dropout."
    all_experiments(tmp_path / "a", {"dropout": (0.9, 0.87)})
    found = judged(tmp_path / "a", statement)
    assert (found.verdict, len(found.runs)) == ("supported", 18)
    assert "against the best other, cnn_dropout batch norm 87.00" in found.findings[0].numbers
    all_experiments(tmp_path / "b", {"dropout": (0.9, 0.87), "weight_decay": (0.9, 0.93)})
    assert judged(tmp_path / "b", statement).verdict == "contradicted"
    write_pair(tmp_path / "c", 0.9, 0.87, experiment="cnn_dropout", dataset="cifar10")
    assert judged(tmp_path / "c", statement).findings == ()


def test_most_experiments(tmp_path: Path) -> None:
    statement = "In most experiments batch norm makes the CNN more accurate."
    all_experiments(tmp_path, {"elu": (0.85, 0.8), "relu": (0.85, 0.851)})
    found = judged(tmp_path, statement)
    assert found.verdict == "supported"
    assert found.findings[0].numbers.startswith("of 9 experiments batch norm is better in 7, worse in 1, within")


def test_the_catalogue_is_whole() -> None:
    assert len({claim.statement for claim in CLAIMS}) == len(CLAIMS) == 46
    for claim in CLAIMS:
        assert claim.where.startswith(("7.", "8."))
        assert len(claim.quote) > 40
    assert {number for claim in CLAIMS for number in ("8.1.1", "8.1.2", "8.1.3", "8.1.4", "8.1.5", "8.1.6", "8.3")} <= {
        part.strip("; ") for claim in CLAIMS for part in claim.where.replace(";", " ").split()
    }


def test_no_runs_no_findings(tmp_path: Path) -> None:
    write_run(tmp_path, experiment="mlp_mine")
    found = judge_all(collect([tmp_path]))
    assert {one.verdict for one in found} == {"cannot tell"}
    assert all(one.reason.startswith("runs are missing; bnlab study --configs ") for one in found)


def test_a_judge_is_asked_once_for_each_dataset_that_has_runs(tmp_path: Path) -> None:
    for dataset in ("mnist", "digits"):
        write_run(tmp_path, curve_rows([0.5]), dataset=dataset)
    write_run(tmp_path, experiment="mlp_elu", dataset="svhn")
    asked = []

    def judge(evidence: Evidence) -> Finding | None:
        asked.append((evidence.architecture, evidence.dataset))
        (run,) = evidence.runs("relu", False)
        assert evidence.curves(run).by_epoch("val_acc") == ([1], [0.5])
        return evidence.finding("supported", "", [run])

    claim = Claim("mlp", "A.", "q", "8.1", ("relu",), judge)
    found = conclude(claim, collected(tmp_path), lambda run: read_curves(run.folder))
    assert asked == [("mlp", "mnist"), ("mlp", "digits")]
    assert (found.verdict, len(found.runs)) == ("supported", 2)


def test_conclusions_as_text_tables_and_lists(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.1135, 0.985, experiment="mlp_lr_high", seeds=[0, 1, 2])
    collection = collected(tmp_path)
    found = judge_all(collection)
    text = conclusions_text(collection, found, width=100)
    assert max(map(len, text.splitlines())) <= 100
    flat = " ".join(text.split())
    assert f"supported {LR} thesis 8.1.2; 7.1.2, figures 7.5 and 7.6: “batch normalization enables" in flat
    assert "runs: mlp_lr_high/mnist-vanilla-seed{0,1,2}, mlp_lr_high/mnist-bn-seed{0,1,2}" in flat
    assert "Cannot tell, since runs are missing:" in flat
    assert (
        "The sigmoid CNN trains only with batch norm. (8.1.1; 7.2.1, figures 7.18 and 7.19) Needs cnn_sigmoid." in flat
    )
    rows = list(csv.DictReader(io.StringIO(to_csv(conclusions_table(found)))))
    assert len(rows) == len(CLAIMS)
    (row,) = [row for row in rows if row["conclusion"] == LR]
    assert (row["verdict"], row["dataset"], row["verdict_on_dataset"]) == ("supported", "MNIST", "supported")
    assert "| **supported** | Batch norm allows learning rate 0.1" in to_markdown(conclusions_table(found))
    page = write_report(collection, tmp_path / "report", ["md"]).folder / "report.md"
    assert f"- **supported**: {LR} *Thesis 8.1.2; 7.1.2" in page.read_text(encoding="utf-8")
