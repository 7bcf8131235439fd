"""What callbacks/README.md says: its snippets run, and its tables have every tag that is logged."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bnlab_callbacks
from bnlab_callbacks.plugin import make_callbacks
from bnlab_callbacks.record_file import split_tag
from tests.callbacks.small_runs import Module, data

README = (Path(__file__).parents[2] / "callbacks" / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_thread_of_the_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippets leave Lightning's progress bar on."""
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)


class SelfAttention(nn.Module):
    """Of one head, without weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Net(Module):
    """A net in which every callback finds something; the layers have the names that the README's examples use."""

    def __init__(self) -> None:
        net = nn.Sequential()
        for name, layer in {
            "conv": nn.Conv1d(1, 4, 3),
            "bn": nn.BatchNorm1d(4),
            "act": nn.ReLU(),
            "attn": SelfAttention(),
            "flat": nn.Flatten(),
            "fc1": nn.Linear(16, 5),
            "squash": nn.Sigmoid(),
            "fc2": nn.Linear(5, 3),
        }.items():
            net.add_module(name, layer)
        super().__init__(net)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def train_dataloader(self) -> Any:
        return batches()


def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(24, (1, 6))), batch_size=8)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def documented() -> set[str]:
    """Quantities in the tables of tags, without `_epoch` where another row explains it."""
    section = README.partition("\n## Tags\n")[2].partition("\n## ")[0]
    firsts = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for first in firsts for name in re.findall(r"`([^`]+)`", first)}


def quantities(tags: set[str]) -> set[str]:
    """What the tables should have for `tags`."""
    names = set()
    for tag in tags:
        quantity = split_tag(tag)[0]
        own = quantity in ("grad_nonfinite_steps_epoch", "dead_revived_epoch")
        group, _, rest = quantity.partition("/")  # `smoothness_epoch/loss_min` is that of `smoothness/loss_min`
        names.add(quantity if own else "/".join(part for part in (group.removesuffix("_epoch"), rest) if part))
    return names


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The names after all Python snippets have run, one after the other, in an empty folder; `printed` by the last."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": Net(), "train_loader": batches()}
    for block in blocks("python"):
        capsys.readouterr()
        exec(compile(block, "README.md", "exec"), names)
    return names | {"printed": capsys.readouterr().out}


@pytest.mark.slow
def test_the_python_snippets_run_and_the_tables_have_every_tag(namespace: dict[str, Any]) -> None:
    run = namespace["trainer"]
    events = EventAccumulator(run.log_dir)
    events.Reload()
    logged = quantities(set(events.Tags()["scalars"]) - {"epoch"})
    explained = documented()
    assert logged <= explained, f"not in the README: {sorted(logged - explained)}"
    # only where a run is resumed within an epoch, and where batches are accumulated
    never_here = {"time/partial_epoch", "grad_noise_scale_epoch"}
    assert explained - logged <= never_here, f"not logged: {sorted(explained - logged)}"
    assert {tag.partition("/")[0] for tag in events.Tags()["histograms"]} == {"grad"}
    assert {tag.partition("/")[0] for tag in events.Tags()["images"]} == {"Heatmap"}
    assert namespace["gradients"].latest.keys() & {"grad_rms/00_net.conv"}
    assert (Path(run.log_dir) / "dead_units.csv").is_file()
    rows = list(bnlab_callbacks.read_records(Path(run.log_dir) / "records.csv"))
    assert {"00_net.conv", "01_net.fc1"} == {row.layer for row in rows if row.quantity == "update_ratio"}
    first = next(row for row in rows if row.quantity == "update_ratio")
    assert f"{first.step} {first.layer} {first.value}\n" in namespace["printed"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning 2.6 and jsonargparse
def test_the_yaml_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("yaml")
    Path("config.yaml").write_text(block)
    words = ["fit", "--config", "config.yaml", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    monkeypatch.setattr("sys.argv", ["train.py"])
    cli = LightningCLI(Net, args=words, save_config_callback=None, seed_everything_default=False)
    assert {"grad_rms_epoch/00_net.conv", "act_std_epoch/00_net.act"} <= cli.trainer.callback_metrics.keys()
    assert (Path(str(cli.trainer.log_dir)) / "records.csv").is_file()


def test_the_variables_value_is_understood() -> None:
    (value,) = re.findall(r'BNLAB_CALLBACKS="(.*)" python', "".join(blocks("bash")))
    assert [type(each).__name__ for each in make_callbacks(value)] == [
        "GradientMonitor",
        "ActivationMonitor",
        "EpochTimer",
    ]


def test_every_callback_is_listed() -> None:
    table = README.partition("\n## Use\n")[0]
    public = {name: getattr(bnlab_callbacks, name) for name in bnlab_callbacks.__all__}
    callbacks = {name for name, one in public.items() if isinstance(one, type) and issubclass(one, Callback)}
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == callbacks
