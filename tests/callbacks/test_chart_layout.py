"""TensorBoard's Custom Scalars tab: which charts there are, and which tags they match."""

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import Tensor

from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor
from bnlab_callbacks.chart_layout import ChartLayout, layout
from bnlab_callbacks.core.lightning.publisher import publish_epoch
from tests.callbacks.small_runs import Module, loader, mlp, trainer
from tests.callbacks.test_logging import events
from tests.callbacks.test_record_file import Boom

Charts = dict[str, dict[str, list[str]]]


def layouts(folder: str | Path) -> list[Charts]:
    """Every layout in the event files of a folder: category → chart → regular expressions."""
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    found = []
    if "custom_scalars__config__" in accumulator.Tags()["tensors"]:
        for event in accumulator.Tensors("custom_scalars__config__"):
            read = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
            found.append(
                {
                    category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
                    for category in read.category
                }
            )
    return found


def matched(charts: Charts, tags: set[str]) -> dict[str, set[str]]:
    """What TensorBoard shows in each chart."""
    return {
        title: {tag for tag in tags if any(re.match(pattern, tag) for pattern in patterns)}
        for of_category in charts.values()
        for title, patterns in of_category.items()
    }


def monitors() -> list[Any]:
    return [GradientMonitor(), ActivationMonitor(dead_window=2), EpochTimer()]


def test_quantities_come_into_their_categories() -> None:
    tags = [
        "grad_rms/00_a",
        "grad_rms/01_b",
        "grad_rms_epoch/00_a",
        "update_ratio/00_a",
        "act_std/00_c",
        "dead_frac/00_c",
    ]
    tags += [
        "bn_drift/00_d",
        "ics_l2/00_a",
        "smoothness/loss_min",
        "mine/00_a",
        "train_loss_step",
        "train_loss",
        "val_loss",
        "val/acc",
        "time/epoch_s",
    ]
    tags += ["time/val_s", "time/samples_per_s", "diagnostics/overhead_frac", "lr-SGD"]
    charts = layout(tags)
    overview = charts.pop("Overview")
    assert list(overview) == ["loss", "acc", "update_ratio", "dead_frac"]
    for title, chart in overview.items():  # they stand in their categories too
        assert chart in [of_category[title] for of_category in charts.values() if title in of_category]
    assert charts == {
        "Gradients": {
            "grad_rms": ["Multiline", [r"^grad_rms/\d{2,}_"]],
            "update_ratio": ["Multiline", [r"^update_ratio/\d{2,}_"]],
            "grad_rms_epoch": ["Multiline", [r"^grad_rms_epoch/\d{2,}_"]],
        },
        "Activations": {
            "act_std": ["Multiline", [r"^act_std/\d{2,}_"]],
            "dead_frac": ["Multiline", [r"^dead_frac/\d{2,}_"]],
        },
        "Batch norm": {
            "bn_drift": ["Multiline", [r"^bn_drift/\d{2,}_"]],
            "ics_l2": ["Multiline", [r"^ics_l2/\d{2,}_"]],
            "smoothness/loss_min": ["Multiline", ["^smoothness/loss_min$"]],
        },
        "Other layer values": {"mine": ["Multiline", [r"^mine/\d{2,}_"]]},
        "Time & training": {
            "acc": ["Multiline", ["^val/acc$"]],
            "diagnostics/overhead_frac": ["Multiline", ["^diagnostics/overhead_frac$"]],
            "loss": ["Multiline", ["^train_loss$", "^train_loss_step$", "^val_loss$"]],
            "lr-SGD": ["Multiline", [r"^lr\-SGD$"]],
            "seconds": ["Multiline", ["^time/epoch_s$", "^time/val_s$"]],
            "time/samples_per_s": ["Multiline", ["^time/samples_per_s$"]],
        },
    }
    assert layout([]) == {}
    assert layout(["a.b/00_x"], "my.run-") == {
        "Other layer values": {"a.b": ["Multiline", [r"^my\.run\-a\.b/\d{2,}_"]]}
    }


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("prefix", ["", "my.run"])
def test_each_tag_of_a_run_is_in_one_chart_with_its_like(prefix: str, first: bool, tmp_path: Path) -> None:
    log = TensorBoardLogger(tmp_path, name="", version="", prefix=prefix)
    callbacks = [ChartLayout(), *monitors()] if first else [*monitors(), ChartLayout()]
    trainer(*callbacks, logger=log, max_epochs=3).fit(Module(mlp()), loader(), loader(8))
    (charts,) = layouts(tmp_path)
    before = f"{prefix}-" if prefix else ""
    tags = set(events(tmp_path)) - {f"{before}epoch", f"{before}hp_metric"}
    shown = matched(charts, tags)
    assert sorted(tag for title in shown for tag in shown[title]) == sorted(tags)
    slope = "grad_depth_slope"  # of the whole net
    assert shown[slope] == {f"{before}{slope}", f"{before}{slope}_epoch"}
    assert slope in charts["Gradients"]
    for category in ("Gradients", "Activations"):
        for title in charts[category].keys() - {slope}:
            assert shown[title] == {tag for tag in tags if tag.startswith(f"{before}{title}/")}
            assert shown[title]
    assert shown["loss"] == {f"{before}train_loss", f"{before}val_loss"}
    assert list(charts) == ["Overview", "Gradients", "Activations", "Time & training"]
    assert list(charts["Overview"]) == ["loss", slope, "update_ratio", "sat_frac", "dead_frac"]


def test_new_quantities_are_added(tmp_path: Path) -> None:
    class Late(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                publish_epoch(trainer, {"bn_late/00_a": 1.0})

    log = TensorBoardLogger(tmp_path, name="", version="")
    trainer(ChartLayout(), GradientMonitor(), Late(), logger=log, max_epochs=5).fit(Module(mlp()), loader())
    before, after = layouts(tmp_path)
    assert "Batch norm" not in before
    assert after.pop("Batch norm") == {"bn_late": [r"^bn_late/\d{2,}_"]}
    assert after == before


def test_runs_that_end_early_have_a_layout_too(tmp_path: Path) -> None:
    log = TensorBoardLogger(tmp_path, name="", version="")
    with pytest.raises(RuntimeError, match="boom"):
        trainer(ChartLayout(), *monitors(), Boom(1), logger=log).fit(Module(mlp()), loader())
    (charts,) = layouts(tmp_path)
    assert {"grad_rms", "update_ratio"} <= charts["Gradients"].keys()


def test_without_tensorboard_it_says_so_once(tmp_path: Path) -> None:
    run = trainer(ChartLayout(), *monitors(), logger=CSVLogger(tmp_path), max_epochs=2)
    with pytest.warns(UserWarning, match="ChartLayout is off .*TensorBoard") as said:
        run.fit(Module(mlp()), loader())
    assert len([each for each in said if "ChartLayout" in str(each.message)]) == 1
    log = TensorBoardLogger(tmp_path, name="tb", version="")
    trainer(ChartLayout(), *monitors(), logger=log, fast_dev_run=True).fit(Module(mlp()), loader())
    trainer(ChartLayout(enabled=False), *monitors(), logger=log).fit(Module(mlp()), loader())
    assert layouts(log.log_dir) == []


def test_metrics_alone_have_charts(tmp_path: Path) -> None:
    class Both(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("train_acc", loss, on_step=True, on_epoch=True)
            return loss

    log = TensorBoardLogger(tmp_path, name="", version="")
    trainer(ChartLayout(), logger=log).fit(Both(mlp()), loader(), loader(8))
    (charts,) = layouts(tmp_path)
    assert matched(charts, set(events(tmp_path))) == {
        "acc": {"train_acc_step", "train_acc_epoch"},
        "loss": {"train_loss", "val_loss"},
    }


def test_values_of_the_whole_net_stand_with_those_of_its_layers() -> None:
    charts = layout(["grad_depth_slope", "grad_depth_slope_epoch", "smoothness/loss_max", "smoothness_epoch/loss_max"])
    assert list(charts) == ["Overview", "Gradients", "Batch norm"]
    assert list(charts["Overview"]) == ["grad_depth_slope"]
