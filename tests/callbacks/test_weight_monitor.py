"""WeightMonitor in real runs against singular values of the weights that a plain loop has behind each step."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab_callbacks import GradientMonitor, WeightMonitor
from tests.callbacks.small_runs import Each, Module, data, hooks_of, loader, memory, mlp, trainer

LAYERS = {"00_net.0": 0, "01_net.2": 2, "02_net.4": 4}


def records_by_hand(steps: int, size: int = 8) -> list[dict[str, float]]:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = data(steps * size)
    found = []
    for bx, by in zip(x.split(size), y.split(size), strict=True):
        optimizer.zero_grad()
        F.mse_loss(net(bx), by).backward()
        optimizer.step()
        record = {}
        for name, place in LAYERS.items():
            weight: Any = net[place].weight
            values = torch.linalg.svdvals(weight.detach().double())
            norm = float(values.square().sum().sqrt())
            record[f"weight_norm/{name}"] = norm
            record[f"weight_spectral_norm/{name}"] = float(values[0])
            record[f"weight_stable_rank/{name}"] = (norm / float(values[0])) ** 2
        found.append(record)
    return found


@pytest.mark.parametrize("accumulated", [1, 2])
def test_every_record_equals_the_plain_loop(accumulated: int) -> None:
    each = Each(monitor := WeightMonitor())
    run = trainer(monitor, each, accumulate_grad_batches=accumulated)
    run.fit(Module(mlp()), loader(batch_size=8 // accumulated))
    wanted = records_by_hand(3)
    assert len(each.records) == 3
    for record, by_loop in zip(each.records, wanted, strict=True):
        assert record == pytest.approx(by_loop, rel=2e-3)
        norms = {tag: value for tag, value in by_loop.items() if tag.startswith("weight_norm")}
        assert {tag: record[tag] for tag in norms} == pytest.approx(norms, rel=1e-5)
    mean = sum(record["weight_norm/00_net.0"] for record in each.records) / 3
    assert float(run.callback_metrics["weight_norm_epoch/00_net.0"]) == pytest.approx(mean, rel=1e-6)


def test_due_steps_and_numbers_are_those_of_the_gradients() -> None:
    net = nn.Sequential(mlp(), nn.Conv1d(1, 2, 3))

    class Backwards(Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = net[0](net[1](x.unsqueeze(1)).mean(1).repeat(1, 2)[:, :6])
            return out

    run = trainer(weights := WeightMonitor(2, layers=r"1$|net\.0\.0"), gradients := GradientMonitor(1), max_epochs=2)
    run.fit(model := Backwards(net), loader(40))
    assert memory(run).steps("weight_norm/00_net.1") == [0, 2, 4, 5, 6, 8]
    layers = {tag.partition("/")[2] for tag in weights.latest}
    assert layers == {"00_net.1", "01_net.0.0"}
    assert layers < {tag.partition("/")[2] for tag in gradients.latest}
    assert hooks_of(model) == []


def test_weights_and_random_numbers_are_the_same_bit_for_bit() -> None:
    found = []
    for callbacks in ([], [WeightMonitor()]):
        run = trainer(*callbacks)
        torch.manual_seed(0)
        run.fit(Module(mlp(nn.Dropout(0.5))), loader())
        found.append([*run.lightning_module.parameters(), torch.rand(2)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_records_what_the_undisturbed_one_does(tmp_path: Path) -> None:
    """Power iterations go on where they stood."""

    def life(folder: str, **resume: Any) -> list[dict[str, float]]:
        each = Each(monitor := WeightMonitor())
        keep = pl.callbacks.ModelCheckpoint(tmp_path / folder, save_top_k=-1, filename="{step}")
        run = trainer(monitor, each, keep, max_epochs=2, enable_checkpointing=True)
        run.fit(Module(mlp()), loader(), **resume)
        return each.records

    whole = life("whole")
    rest = life("rest", ckpt_path=tmp_path / "whole" / "step=3.ckpt", weights_only=True)
    assert rest == whole[3:] != []


def test_a_filter_without_a_match_names_what_there_is() -> None:
    with pytest.warns(UserWarning, match=r"matches layers='conv'; there are: net\.0, net\.2, net\.4"):
        trainer(WeightMonitor(layers="conv")).fit(Module(mlp()), loader())
