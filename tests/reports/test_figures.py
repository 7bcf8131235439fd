"""The figures: what their lines say, which of the thesis's they stand beside, and what their files hold."""

import io
import math
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from bnlab.reports import Run, collect
from bnlab.reports.estimates import accuracy
from bnlab.reports.figures.averages import band, log_ratio, mean_in_bins, over_seeds
from bnlab.reports.figures.comparisons import batch_size_figure, comparison_series
from bnlab.reports.figures.plans import FigurePlan, plan_figures
from bnlab.reports.figures.style import BATCH_NORM, VANILLA, axis_start, literal, panels, png, svg
from bnlab.reports.figures.training import accuracy_over_time, loss_scale
from bnlab.reports.reading.curves import Curves, LayerTable, read_curves
from bnlab.reports.thesis.figures import BATCH_SIZE_FIGURES, COMPARISONS, CURVES, GRADIENTS
from tests.reports.study_files import curve_rows, one_run, write_pair, write_run

LAYERS = ({"00_net.fc1": 1e-3, "01_net.logits": 1e-2}, {"00_net.fc1": 1e-4, "01_net.logits": 1e-2})


def plans(root: Path, quantity: str = "grad_mean_abs") -> dict[str, FigurePlan]:
    @cache
    def curves(run: Run) -> Curves:
        return read_curves(run.folder, ("grad_mean_abs", quantity))

    return {plan.name: plan for plan in plan_figures(collect([root]), curves, quantity)}


def drawn(plan: FigurePlan) -> Any:
    figure = plan.draw()
    assert figure is not None
    figure.draw_without_rendering()
    return figure


def lines(axes: Any) -> list[tuple[str, str, list[float], list[float]]]:
    """Colour, style, x and y of each line."""
    return [
        (line.get_color(), line.get_linestyle(), list(line.get_xdata()), np.asarray(line.get_ydata()).tolist())
        for line in axes.get_lines()
    ]


def study(root: Path) -> None:
    write_run(root, curve_rows([0.5, 0.6], [2.0, 1.0], gradients=LAYERS), test_acc=0.6)
    write_run(root, curve_rows([0.7, 0.9, 0.8], [1.5, 0.5, 0.4], 3.0, LAYERS), batch_norm=True, test_acc=0.8)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FigurePlan]:
    """The plans of one study, shared by the tests that change nothing."""
    root = tmp_path_factory.mktemp("study")
    study(root)
    return plans(root)


def test_training_curves_are_the_records(studied: dict[str, FigurePlan]) -> None:
    figure = drawn(studied["curves_mlp_relu"])
    left, right = figure.axes
    assert left.get_title(loc="left") == "MNIST"
    assert lines(left) == [
        (VANILLA, "-", [1, 2], pytest.approx([50.0, 60.0])),
        (BATCH_NORM, "-", [1, 2, 3], pytest.approx([70.0, 90.0, 80.0])),
    ]
    assert [(colour, style, y) for colour, style, _, y in lines(right)] == [
        (VANILLA, "--", [2.0, 1.0]),
        (BATCH_NORM, "--", [1.5, 0.5, 0.4]),
    ]
    assert left.get_ylim() == (0, 100)
    assert right.get_ylim() == (0, pytest.approx(2.1))
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        *("vanilla", "batch norm", "validation accuracy", "training loss"),
    }
    (subtitle,) = left.texts
    assert subtitle.get_text() == "test: vanilla 60.00 %; batch norm 80.00 %"


def test_several_seeds_are_a_mean_and_a_band(tmp_path: Path) -> None:
    for seed, values in enumerate([[0.5, 0.6], [0.7, 0.7, 0.9]]):
        write_run(tmp_path, curve_rows(values), seed=seed)
    left, _ = drawn(plans(tmp_path)["curves_mlp_relu"]).axes
    assert lines(left) == [(VANILLA, "-", [1, 2, 3], pytest.approx([60.0, 65.0, 75.0]))]
    (area,) = left.collections
    edges = area.get_paths()[0].vertices
    assert (edges[:, 1].min(), edges[:, 1].max()) == pytest.approx((50, 90))


def test_a_diverged_run_is_named_and_its_loss_does_not_flatten_the_other(tmp_path: Path) -> None:
    write_run(tmp_path, curve_rows([0.1], [math.nan]), status="diverged", test_acc=0.098)
    write_run(tmp_path, curve_rows([0.3, 0.5], [8e24, 2.0]), seed=1, test_acc=0.1)
    write_run(tmp_path, curve_rows([0.7, 0.9], [1.5, 0.5]), batch_norm=True, test_acc=0.9)
    left, right = drawn(plans(tmp_path)["curves_mlp_relu"]).axes
    assert right.get_ylim()[1] == pytest.approx(1.05 * 15)
    words = " ".join(left.texts[0].get_text().split())
    assert words == "test: vanilla 9.90 % (1 of 2 diverged); batch norm 90.00 %; loss of vanilla off the scale"


@pytest.mark.parametrize(
    ("highest", "top"), [([2.0, 1.0], 2.0), ([8e24, 2.0], 20.0), ([0.0, 3.0], 3.0), ([], 1.0), ([0.0], 1.0)]
)
def test_the_scale_of_the_loss(highest: list[float], top: float) -> None:
    assert loss_scale(highest) == top


def test_gradients_of_each_layer_side_by_side(studied: dict[str, FigurePlan]) -> None:
    figure = drawn(studied["gradients_mlp_relu"])
    vanilla, batch_norm = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["MNIST, vanilla", "MNIST, batch norm"]
    assert [(x, y) for _, _, x, y in lines(vanilla)] == [([0, 10], [1e-3, 1e-4]), ([0, 10], [1e-2, 1e-2])]
    assert vanilla.get_yscale() == "log"
    assert vanilla.get_ylim() == batch_norm.get_ylim()
    first, last = (line.get_color() for line in vanilla.get_lines())
    assert sum(first[:3]) < sum(last[:3])  # dark to light
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["00_net.fc1", "01_net.logits"]


def test_zeros_have_no_place_on_a_logarithmic_axis(tmp_path: Path) -> None:
    write_run(tmp_path, curve_rows([0.5, 0.5], gradients=[{"00_a": 0.1}, {"00_a": 0.0}]))
    vanilla, batch_norm = drawn(plans(tmp_path)["gradients_mlp_relu"]).axes
    assert lines(vanilla)[0][3] == pytest.approx([0.1, math.nan], nan_ok=True)
    assert [text.get_text() for text in batch_norm.texts] == ["no runs"]


def test_the_difference_is_log10_of_batch_norm_over_vanilla(tmp_path: Path) -> None:
    study_gradients = [{"00_a": 1e-1, "01_b": 1e-3}, {"00_a": 1e-2, "01_b": 1e-2}]
    write_run(tmp_path, curve_rows([0.5, 0.6], gradients=[{"00_a": 1e-3, "01_b": 1e-3}, {"00_a": 0.0, "01_b": 1e-1}]))
    write_run(tmp_path, curve_rows([0.5, 0.6], gradients=study_gradients), batch_norm=True)
    figure = drawn(plans(tmp_path)["difference_grad_mean_abs_mlp_relu"])
    mesh = figure.axes[0].collections[0]
    values = mesh.get_array()
    assert values.filled(math.nan).tolist() == [
        pytest.approx([2.0, math.nan], nan_ok=True),
        pytest.approx([0.0, -1.0]),
    ]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["00_a", "01_b"]
    assert figure.axes[0].get_ylim() == (2, 0)  # the first layer at the top
    low, high = mesh.get_clim()
    assert low == -high
    assert figure.axes[1].get_ylabel() == "log10 grad_mean_abs, batch norm / vanilla"


def test_a_quantity_can_be_chosen(tmp_path: Path) -> None:
    for flag, value in ((False, -3.0), (True, -1.5)):
        rows = [(0, 0, "update_ratio", "00_a", value), (9, 0, "val_acc", "", 0.5)]
        write_run(tmp_path, rows, batch_norm=flag)
    found = plans(tmp_path, "update_ratio")
    mesh = drawn(found["difference_update_ratio_mlp_relu"]).axes[0].collections[0]
    assert mesh.get_array().tolist() == [[pytest.approx(1.5)]]  # update_ratio is a logarithm already
    assert found["difference_update_ratio_mlp_relu"].draw() is not None
    assert plans(tmp_path, "act_std")["difference_act_std_mlp_relu"].draw() is None


def table(steps: list[float], *rows: list[float]) -> LayerTable:
    return LayerTable(np.array(rows), np.array(steps, dtype=float), tuple(f"{i:02d}_a" for i in range(len(rows))))


def test_a_band_over_seeds() -> None:
    found = band([([1, 2, 3], [0.1, 0.2, 0.4]), ([1, 2], [0.3, 0.6])])
    assert found.x.tolist() == [1, 2, 3]
    assert found.mean.tolist() == pytest.approx([0.2, 0.4, 0.5])  # the second run keeps its last value
    assert found.low.tolist() == pytest.approx([0.1, 0.2, 0.4])
    assert found.high.tolist() == pytest.approx([0.3, 0.6, 0.6])


def test_a_band_leaves_out_what_is_not_finite() -> None:
    found = band([([1, 2], [math.nan, math.inf]), ([1, 2, 3], [1.0, math.nan, 2.0])])
    assert found.mean.tolist() == pytest.approx([1.0, math.nan, 2.0], nan_ok=True)
    empty = band([([], []), ([], [])])
    assert [len(values) for values in empty] == [0, 0, 0, 0]


def test_bins_are_means_of_finite_values() -> None:
    values = np.array([[1.0, 3.0, math.nan, 5.0, math.nan, math.inf], [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]])
    table = mean_in_bins(LayerTable(values, np.arange(0.0, 60, 10), ("00_a", "01_b")), 3)
    assert table.steps.tolist() == [5, 25, 45]
    assert table.values[0].tolist() == pytest.approx([2.0, 5.0, math.nan], nan_ok=True)
    assert table.values[1].tolist() == [1, 2, 3]
    assert mean_in_bins(table, 3) is table


def test_a_ratio_ends_where_both_have_values() -> None:
    found = log_ratio(table([0, 10, 20, 30], [1.0, 1, 1, 1]), table([0, 10], [10.0, 100]), columns=4)
    assert found is not None
    assert found.edges.tolist() == [0, 5.5, 11]
    assert found.values.tolist() == [[1.0, 2.0]]
    assert log_ratio(table([0, 10], [1.0, 1]), table([5, 15], [1.0, 1])) is None


def test_the_mean_over_seeds_keeps_all_steps() -> None:
    found = over_seeds([table([0, 10], [1.0, math.inf], [2.0, 2.0]), table([0, 20], [3.0, 5.0], [4.0, math.nan])])
    assert found is not None
    assert found.steps.tolist() == [0, 10, 20]
    assert found.values[0].tolist() == pytest.approx([2.0, math.nan, 5.0], nan_ok=True)
    assert found.values[1].tolist() == pytest.approx([3.0, 2.0, math.nan], nan_ok=True)
    assert over_seeds([]) is None


def test_accuracy_over_wall_time_adds_up_epochs(tmp_path: Path) -> None:
    run = one_run(tmp_path)
    (run.folder / "records.csv").unlink(missing_ok=True)
    curves = Curves({"time/epoch_s": {0: 2.0, 1: 3.0, 2: 4.0}, "val_acc": {0: 0.5, 2: 0.75}})
    assert accuracy_over_time(curves) == ([2.0, 9.0], [50.0, 75.0])
    assert accuracy_over_time(Curves()) == ([], [])


def test_wall_time_has_a_line_for_each_run(tmp_path: Path) -> None:
    study(tmp_path)
    write_run(tmp_path, curve_rows([0.4], seconds=5.0), seed=1)
    (axes,) = drawn(plans(tmp_path)["wall_time_mlp_relu"]).axes
    assert [(colour, x) for colour, _, x, _ in lines(axes)] == [
        (VANILLA, [2.0, 4.0]),
        (VANILLA, [5.0]),
        (BATCH_NORM, [3.0, 6.0, 9.0]),
    ]


def test_comparisons_of_batch_norm_alone_and_of_both(tmp_path: Path) -> None:
    for number, experiment in enumerate(("mlp_relu", "mlp_elu", "mlp_lr_low")):
        for flag in (False, True):
            write_run(tmp_path, curve_rows([0.1 * number + flag * 0.5] * 4), experiment=experiment, batch_norm=flag)
    found = plans(tmp_path)
    both = drawn(found["comparison_mlp_activations"])
    assert [(colour, y[0]) for colour, _, _, y in lines(both.axes[0])] == [
        (VANILLA, 0.0),
        (BATCH_NORM, 50.0),
        (VANILLA, pytest.approx(10.0)),
        (BATCH_NORM, pytest.approx(60.0)),
    ]
    styles = [style for _, style, _, _ in lines(both.axes[0])]
    assert styles[:2] == ["-", "-"]
    assert styles[2:] == ["--", "--"]
    alone = drawn(found["comparison_mlp_learning_rates"])
    assert [y[0] for _, _, _, y in lines(alone.axes[0])] == [50.0, pytest.approx(70.0)]
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["baseline (ReLU)", "η = 0.001"]
    assert "comparison_mlp_regularization" not in found  # one experiment is no comparison
    assert comparison_series({"ReLU": [[], []]}, True) == []


def test_the_axis_of_a_comparison_starts_below_its_lines() -> None:
    assert axis_start([[97.0], [50.0, 93.0, 99.0, 99.0]]) == 80  # after a quarter of the epochs
    assert axis_start([[97.0], [50.0, 93.0, 99.0]]) == 40
    assert axis_start([[97.0], [93.0]]) == 80
    assert axis_start([[2.0]]) == 0
    assert axis_start([[math.nan]]) == 0


def test_accuracy_by_batch_size(tmp_path: Path) -> None:
    for size, vanilla, batch_norm in ((32, 0.979, 0.984), (1024, 0.975, 0.97)):
        for seed, shift in enumerate((-0.001, 0.001)):
            write_pair(tmp_path, vanilla + shift, batch_norm + shift, seeds=[seed], batch_size=size)
    plan = plans(tmp_path)["batch_size_mlp"]
    figure = drawn(plan)
    assert plan.title.endswith("(thesis: figure 7.15)")
    (axes,) = figure.axes
    vanilla, batch_norm = axes.containers
    assert list(vanilla.lines[0].get_xdata()) == [32, 1024]
    assert list(vanilla.lines[0].get_ydata()) == pytest.approx([97.9, 97.5])
    assert list(batch_norm.lines[0].get_ydata()) == pytest.approx([98.4, 97.0])
    whisker = vanilla.lines[2][0].get_segments()[0]
    assert whisker[1][1] - 97.9 == pytest.approx(12.7062 * 0.1, rel=1e-4)  # t(1) · s / √2, s = 0.1 · √2
    assert [label.get_text() for label in axes.get_xticklabels()] == ["32", "1024"]


def test_one_batch_size_is_no_sweep(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.98, 0.99)
    assert not [name for name in plans(tmp_path) if name.startswith(("batch_size", "comparison"))]
    assert batch_size_figure("", {"mnist": {64: [accuracy([]), accuracy([])]}}).axes


@pytest.mark.parametrize(
    ("experiment", "settings", "curves", "gradients"),
    [
        ("mlp_relu", {}, "(thesis: figure 7.1)", ""),
        ("mlp_lr_high", {}, "(thesis: figure 7.5)", "(thesis: figure 7.6)"),
        ("cnn_sigmoid", {}, "(thesis: figure 7.18)", "(thesis: figure 7.19)"),
        ("cnn_relu", {"batch_size": 1024}, "batch size B = 1024 (thesis: figure 7.39)", "(thesis: figure 7.40)"),
        ("cnn_relu", {"overrides": {"model.lr": 0.3}}, "CNN, cnn_relu, model.lr=0.3", ""),
        ("cnn_mine", {}, "CNN, cnn_mine", ""),
    ],
)
def test_titles_name_the_figure_of_the_thesis(
    tmp_path: Path, experiment: str, settings: dict[str, Any], curves: str, gradients: str
) -> None:
    write_run(tmp_path, experiment=experiment, **settings)
    titles = {name.partition("_")[0]: plan.title for name, plan in plans(tmp_path).items()}
    assert titles["curves"].endswith(curves)
    assert titles["gradients"].endswith(gradients)
    assert ("thesis" in titles["gradients"]) == bool(gradients)


def test_a_sweep_draws_no_curves_of_other_batch_sizes(tmp_path: Path) -> None:
    for size in (32, 64, 256):
        write_run(tmp_path, batch_size=size)
    names = [name for name in plans(tmp_path) if name.startswith("curves")]
    assert names == ["curves_mlp_relu"]


def test_every_figure_of_chapter_7_is_named_once() -> None:
    numbers = [
        *CURVES.values(),
        *GRADIENTS.values(),
        *(one.figure for one in COMPARISONS),
        *BATCH_SIZE_FIGURES.values(),
    ]
    assert sorted(numbers, key=lambda number: int(number[2:])) == [f"7.{number}" for number in range(1, 41)]


def test_runs_without_records_have_figures_that_say_so(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.98, 0.99)
    found = plans(tmp_path)
    assert found["difference_grad_mean_abs_mlp_relu"].draw() is None
    left, _ = drawn(found["curves_mlp_relu"]).axes
    assert not [x for _, _, x, _ in lines(left) if x]
    assert [axes.texts[0].get_text() for axes in drawn(found["gradients_mlp_relu"]).axes] == ["not recorded"] * 2


def test_hostile_names_are_drawn_as_they_stand(tmp_path: Path) -> None:
    name = r"mlp_$\frac{1}$ <b>&\alpha $x$ 漢字 ☃"
    write_run(tmp_path, curve_rows([0.5], gradients=[{r"00_$\x$": 0.1}]), experiment=name, architecture="mlp")
    for file, plan in plans(tmp_path).items():
        assert file.replace("_", "").isalnum()
        figure = plan.draw()
        if figure is not None:
            assert png(figure)
            text = svg(figure).decode()
            assert "<b>" not in text


def test_the_files_are_what_they_say_and_the_same_each_time(studied: dict[str, FigurePlan]) -> None:
    figure = drawn(studied["curves_mlp_relu"])
    first = svg(figure)
    assert svg(drawn(studied["curves_mlp_relu"])) == first
    assert first.startswith(b"<?xml")
    image = Image.open(io.BytesIO(png(figure)))
    assert image.format == "PNG"
    assert image.size[0] > 500


def test_numbers_in_a_picture_keep_their_digits(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.98, 0.99, experiment="mlp_lr_low")
    text = svg(drawn(plans(tmp_path)["curves_mlp_lr_low"])).decode()
    assert "η = 0.001" in text
    figure, (axes,) = panels(["a"], "t")
    axes.plot([0, 1 / 3], [0, 2 / 7])
    assert max(len(part) for part in svg(figure).decode().split() if part.replace(".", "").isdigit()) < 8


def test_what_matplotlib_would_take_for_a_formula() -> None:
    assert literal("a $x$ b") == r"a \$x\$ b"
    assert literal(r"a \$x") == r"a \$x"


def test_drawing_leaves_matplotlibs_settings_alone(studied: dict[str, FigurePlan]) -> None:
    before = dict(matplotlib.rcParams)
    for plan in studied.values():
        figure = plan.draw()
        assert figure is not None
        svg(figure)
    assert dict(matplotlib.rcParams) == before
