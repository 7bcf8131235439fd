"""Pictures of the whole run: their values, their colours, when they are drawn."""

import functools
import math
import random
import sys
import tempfile
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnlab_callbacks import ActivationMonitor, GradientMonitor, heatmap
from bnlab_callbacks.heatmap import LayerHeatmap, shown_value, value_label
from bnlab_callbacks.pages.heatmap_drawing import MISSING, ZERO, draw, pixels
from bnlab_callbacks.pages.heatmap_grid import Grid
from tests.callbacks.small_runs import MemoryLogger, Module, loader, memory, mlp, trainer
from tests.callbacks.test_record_file import Boom

Values = list[tuple[int, str, float]]


def monitors(every: int | None = None) -> list[Any]:
    return [GradientMonitor(every), ActivationMonitor(every, dead_window=2)]


def slow_table(values: Values, width: int) -> dict[tuple[str, int], float]:
    """What `Grid` should hold: by layer and first step of the column."""
    first: dict[int, int] = {}
    cells: dict[tuple[str, int], list[float]] = defaultdict(list)
    for step, layer, value in values:
        first[step // width] = min(step, first.get(step // width, step))
        cells[layer, step // width].append(value)
    table = {}
    for (layer, column), several in cells.items():
        finite = [value for value in several if math.isfinite(value)]
        none = -math.inf if -math.inf in several else math.nan
        table[layer, first[column]] = math.fsum(finite) / len(finite) if finite else none
    return table


def fast_table(grid: Grid) -> dict[tuple[str, int], float]:
    """Without what was never added, which is NaN too."""
    values, steps, layers = grid.table()
    assert values.shape == (len(layers), len(steps))
    assert steps == sorted(steps)
    return {(layer, step): float(values[i, j]) for i, layer in enumerate(layers) for j, step in enumerate(steps)}


def some_values(seed: int, steps: list[int]) -> Values:
    pick = random.Random(seed)
    special = [math.nan, math.inf, -math.inf, -math.inf]
    return [
        (step, layer, pick.choice(special) if pick.random() < 0.3 else pick.gauss(0, 1))
        for step in steps
        for layer in ("00_a", "01_b", "02_c")
        if pick.random() < 0.8
    ]


@pytest.mark.parametrize("steps", [list(range(100)), list(range(0, 5000, 50)), [0, 1, 2, 70, 71, 5000, 10**9], [7]])
@pytest.mark.parametrize("columns", [1, 2, 7, 64, 1000])
def test_columns_are_merged_as_by_the_slow_way_in_any_order(columns: int, steps: list[int]) -> None:
    values = some_values(len(steps), steps)
    grids = []
    for seed in range(3):
        random.Random(seed).shuffle(values)
        grid = Grid(columns)
        for step, layer, value in values:
            grid.add(step, {layer: value})
            assert len(grid) <= columns
        grids.append(grid)
    for grid in grids:
        slow, fast = slow_table(values, grid.width), fast_table(grid)
        assert slow == pytest.approx({key: fast[key] for key in slow}, rel=1e-12, abs=1e-12, nan_ok=True)
        assert all(math.isnan(value) for key, value in fast.items() if key not in slow)
        assert grid.width == grids[0].width
    width, present = grids[0].width, {step for step, _, _ in values}
    assert width == 1 or len({step // (width // 2) for step in present}) > columns  # no wider than needed


def test_a_grid_goes_on_after_a_checkpoint(tmp_path: Path) -> None:
    values = some_values(1, list(range(60)))
    values.insert(90, (30, "10_late", 1.0))
    whole, parts = Grid(16), Grid(16)
    for index, (step, layer, value) in enumerate(values):
        if index % 31 == 0:
            torch.save(parts.state_dict(), tmp_path / "state")
            parts = Grid(16)
            parts.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        whole.add(step, {layer: value})
        parts.add(step, {layer: value})
    assert fast_table(whole) == pytest.approx(fast_table(parts), nan_ok=True)
    narrow = Grid(4)
    narrow.load_state_dict(whole.state_dict())
    assert len(narrow) <= 4


def test_layers_stand_in_the_order_of_their_numbers() -> None:
    grid = Grid(10)
    for layer in ("100_z", "02_b", "11_a", "00_c"):
        grid.add(0, {layer: 1.0})
    assert grid.table()[2] == ["00_c", "02_b", "11_a", "100_z"]


def test_what_is_drawn_for_a_value() -> None:
    assert shown_value("grad_rms", 1e-5) == pytest.approx(-5)
    assert shown_value("grad_mean_abs", 0.0) == -math.inf
    assert shown_value("update_ratio", -math.inf) == -math.inf
    assert shown_value("act_std", 0.25) == 0.25
    for quantity, value in [("grad_rms", math.inf), ("grad_rms", math.nan), ("act_mean", -math.inf)]:
        assert math.isnan(shown_value(quantity, value))
    assert value_label("grad_rms") == "log10 grad_rms"
    assert value_label("act_std") == "act_std"


def colour(figure: Figure, step: float, row: int) -> list[int]:
    """Of the dot in the middle of a layer's row."""
    image = pixels(figure)
    x, y = figure.axes[0].transData.transform((step, row + 0.5))
    found: list[int] = image[image.shape[0] - 1 - int(y), int(x)].tolist()
    return found


def viridis(share: float) -> list[int]:
    return [round(255 * part) for part in matplotlib.colormaps["viridis"](share)[:3]]


def exactly(name: str) -> list[int]:
    return [round(255 * part) for part in to_rgb(name)]


def test_each_dot_has_the_colour_of_its_value() -> None:
    values = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, -math.inf], [math.nan, math.inf, 1.0]])
    steps = [0, 10, 14]  # a column reaches to the next one's step, the last as far as the widest
    figure = draw(values, steps, ["00_first", "01_second", "02_third"])
    expected = [
        [viridis(0.0), viridis(0.25), viridis(0.5)],
        [viridis(0.75), viridis(1.0), exactly(ZERO)],
        [exactly(MISSING), exactly(MISSING), viridis(0.25)],
    ]
    for row in range(3):
        for column, places in enumerate([(0.2, 5, 9.8), (10.2, 12, 13.8), (14.2, 19, 23.8)]):
            assert [colour(figure, place, row) for place in places] == [expected[row][column]] * 3
    limited = draw(values[:1], steps, ["00_first"], limits=(0.0, 4.0))
    assert [colour(limited, step, 0) for step in (5, 12, 19)] == [viridis(0.0), viridis(0.25), viridis(0.5)]


def test_names_steps_and_labels_can_be_read() -> None:
    layers = [f"{i:02d}_net.{i}" for i in range(20)]
    figure = draw(numpy.random.default_rng(0).normal(size=(20, 50)), range(0, 2500, 50), layers, "title", "label")
    axes, bar = figure.axes
    pixels(figure)
    assert [text.get_text() for text in axes.get_yticklabels()] == layers
    assert axes.get_yticks().tolist() == [row + 0.5 for row in range(20)]
    assert axes.get_ylim() == (20, 0)
    assert axes.get_xlim() == (0, 2500)
    assert (axes.get_title("left"), axes.get_xlabel(), bar.get_ylabel()) == ("title", "step", "label")
    assert not figure.legends
    heights = [text.get_window_extent().height for text in axes.get_yticklabels()]
    assert max(heights) < 17  # of a row
    many = draw(numpy.zeros((300, 1)), [0], [f"{i:03d}_{'long_' * 20}{i}" for i in range(300)])
    names = [text.get_text() for text in many.axes[0].get_yticklabels()]
    image = pixels(many)
    assert image.shape[0] <= 1200
    assert names[1].startswith("006_…")
    assert names[1].endswith("long_6")
    assert all(text.get_window_extent().x0 >= 0 for text in many.axes[0].get_yticklabels())
    assert len(names) == 50


def test_the_legend_tells_what_occurs() -> None:
    def said(*row: float) -> list[str]:
        figure = draw([row], range(len(row)), ["00_a"])
        return [text.get_text() for legend in figure.legends for text in legend.get_texts()]

    assert said(1.0, 2.0) == []
    assert said(1.0, -math.inf) == ["exactly 0"]
    assert said(1.0, math.nan) == said(1.0, math.inf) == ["not recorded or not finite"]
    assert said(math.nan, -math.inf) == ["exactly 0", "not recorded or not finite"]


def read(path: Path) -> numpy.ndarray[Any, Any]:
    return numpy.asarray(Image.open(path).convert("RGB"))


def images(folder: Path) -> dict[str, list[tuple[int, numpy.ndarray[Any, Any]]]]:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0})
    accumulator.Reload()
    return {
        tag: [
            (event.step, numpy.asarray(Image.open(BytesIO(event.encoded_image_string))))
            for event in accumulator.Images(tag)
        ]
        for tag in accumulator.Tags()["images"]
    }


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("prefix", ["", "mine"])
def test_files_and_tensorboard_show_what_was_recorded(first: bool, prefix: str, tmp_path: Path) -> None:
    log = TensorBoardLogger(tmp_path, name="", version="", prefix=prefix)
    drawn = LayerHeatmap()
    callbacks = [drawn, *monitors()] if first else [*monitors(), drawn]
    run = trainer(*callbacks, logger=[log, MemoryLogger()], max_epochs=3)
    run.fit(Module(mlp()), loader(), loader(8))
    given: Any = run.loggers[1]
    shown = images(tmp_path)
    quantities = ["grad_rms", "act_std", "sat_frac", "dead_frac", "update_ratio"]
    before = f"{prefix}-" if prefix else ""
    assert set(shown) == {f"{before}Heatmap/{quantity}" for quantity in quantities}
    assert {path.name for path in (tmp_path / "heatmaps").iterdir()} == {f"{quantity}.png" for quantity in quantities}
    for quantity in quantities:
        layers = sorted({tag.partition("/")[2] for tag in given.tags() if tag.startswith(f"{quantity}/")})
        series = [dict(given.series(f"{quantity}/{layer}")) for layer in layers]
        values = [[shown_value(quantity, each[step]) for step in range(9)] for each in series]
        limits = (0.0, 1.0) if quantity in ("sat_frac", "dead_frac") else None
        image = pixels(draw(values, range(9), layers, quantity, value_label(quantity), limits))
        assert numpy.array_equal(read(tmp_path / "heatmaps" / f"{quantity}.png"), image)
        ((step, in_events),) = shown[f"{before}Heatmap/{quantity}"]
        assert step == 8
        assert numpy.array_equal(in_events, image)


@pytest.mark.parametrize("first", [True, False])
def test_an_exception_leaves_pictures_of_all_steps_before_it(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = watch_drawing(monkeypatch)
    drawn = LayerHeatmap(["grad_rms"], str(tmp_path))
    callbacks = [drawn, *monitors(), Boom(4)] if first else [*monitors(), Boom(4), drawn]
    with pytest.raises(RuntimeError, match="boom"):
        trainer(*callbacks, max_epochs=3).fit(Module(mlp()), loader())
    assert [steps for _, steps, *_ in calls] == [[0, 1, 2, 3, 4]]
    assert [path.name for path in (tmp_path / "heatmaps").iterdir()] == ["grad_rms.png"]


def watch_drawing(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls = []
    monkeypatch.setattr(heatmap, "draw", lambda *args: calls.append(args) or draw(*args))
    return calls


def test_short_epochs_are_drawn_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of 4 s, a drawing takes 0.5 s, so 25 s are to pass between two; 10 s before the first."""
    now = [1000.0]
    monkeypatch.setattr(heatmap, "perf_counter", lambda: now[0])
    calls: list[int] = []

    def slow_draw(*args: Any) -> Figure:
        calls.append(args[1][-1])
        now[0] += 0.5
        return draw(*args)

    monkeypatch.setattr(heatmap, "draw", slow_draw)

    class Clock(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            now[0] += 4.0

    callbacks = [LayerHeatmap(["grad_rms"], str(tmp_path)), GradientMonitor(), Clock()]
    trainer(*callbacks, max_epochs=21).fit(Module(mlp()), loader(8))
    assert calls == [2, 9, 16, 20]


def fit(folder: Path, epochs: int, every: int, resume: Path | None = None) -> tuple[LayerHeatmap, MemoryLogger]:
    keep = ModelCheckpoint(folder / f"checkpoints_{epochs}", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    drawn = LayerHeatmap(folder=str(folder), max_columns=7)
    run = trainer(drawn, *monitors(every), keep, max_epochs=epochs, enable_checkpointing=True)
    run.fit(Module(mlp()), loader(40), ckpt_path=resume, weights_only=True if resume else None)
    return drawn, memory(run)


@functools.cache
def before_it(every: int) -> tuple[list[tuple[int | None, dict[str, float]]], dict[str, bytes]]:
    """Rows and checkpoints of a run of two epochs, for all that go on from one of them."""
    with tempfile.TemporaryDirectory() as folder:
        _, logged = fit(Path(folder), 2, every)
        return logged.rows, {path.name: path.read_bytes() for path in Path(folder).glob("checkpoints_2/*")}


@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # what is tested
    "ignore:The dirpath has changed",  # each life has its own
)
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("step", [2, 5, 8])
def test_a_resumed_run_shows_the_whole_run(step: int, every: int, tmp_path: Path) -> None:
    before, checkpoints = before_it(every)
    (tmp_path / "left.ckpt").write_bytes(checkpoints[f"step={step}.ckpt"])
    drawn, after = fit(tmp_path, 3, every, tmp_path / "left.ckpt")
    assert set(drawn._grids) == set(heatmap.QUANTITIES)
    for quantity, grid in drawn._grids.items():
        values = [
            (at, tag.partition("/")[2], shown_value(quantity, metrics[tag]))
            for rows in ([row for row in before if (row[0] or 0) < step], after.rows)
            for at, metrics in rows
            for tag in metrics
            if at is not None and tag.startswith(f"{quantity}/")
        ]
        assert fast_table(grid) == pytest.approx(slow_table(values, grid.width), rel=1e-12, nan_ok=True)
        assert {at for at, _, _ in values} == {at for at in range(15) if every == 1 or at % 2 == 0 or at % 5 == 0}


def test_a_second_fit_goes_on_and_another_trainer_begins_anew(tmp_path: Path) -> None:
    drawn = LayerHeatmap(folder=str(tmp_path))
    model = Module(mlp())
    run = trainer(drawn, *monitors())
    run.fit(model, loader())
    run.fit_loop.max_epochs = 2
    run.fit(model, loader())
    assert drawn._grids["act_std"].table()[1] == list(range(6))
    trainer(drawn, *monitors()).fit(model, loader(16))
    assert drawn._grids["act_std"].table()[1] == [0, 1]


def test_training_and_matplotlib_are_as_without_it(tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    weights = []
    for callbacks in ([], [LayerHeatmap(folder=str(tmp_path)), *monitors()]):
        model = Module(mlp())
        trainer(*callbacks, max_epochs=3).fit(model, loader(), loader(8))
        weights.append(torch.cat([each.flatten() for each in model.parameters()]))
    assert torch.equal(*weights)
    assert dict(matplotlib.rcParams) == settings
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_what_makes_it_impossible_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(drawn: LayerHeatmap, **options: Any) -> str:
        run = trainer(drawn, *monitors(), max_epochs=2, **options)
        with pytest.warns(UserWarning, match="LayerHeatmap is off") as record:
            run.fit(Module(mlp()), loader())
        (message,) = [str(each.message) for each in record if "LayerHeatmap" in str(each.message)]
        return message

    assert "folder=" in said(LayerHeatmap(folder="s3://bucket/run"), logger=False)
    (tmp_path / "file").touch()
    assert "NotADirectoryError" in said(LayerHeatmap(folder=str(tmp_path / "file")))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "matplotlib" in said(LayerHeatmap(folder=str(tmp_path)))
    with pytest.raises(ValueError, match="max_columns=0"):
        LayerHeatmap(max_columns=0)


def test_csv_logger_alone_fast_dev_run_and_nothing_to_draw(tmp_path: Path) -> None:
    table = CSVLogger(tmp_path, "csv", 0)
    trainer(LayerHeatmap(["act_std", "nothing"]), *monitors(), logger=table).fit(Module(mlp()), loader())
    assert [path.name for path in (Path(table.log_dir) / "heatmaps").iterdir()] == ["act_std.png"]
    empty = str(tmp_path / "empty")
    trainer(LayerHeatmap(folder=empty), *monitors(), fast_dev_run=True).fit(Module(mlp()), loader())
    trainer(LayerHeatmap(folder=empty, enabled=False), *monitors()).fit(Module(mlp()), loader())
    run = trainer(LayerHeatmap(folder=empty))
    run.fit(Module(mlp()), loader())
    assert memory(run).tags() == {"train_loss", "epoch"}
    assert not Path(empty).exists()
