"""Which parameters `GradientMonitor` records: all of them on request, layers that join later, effective weights."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint, ModelPruning
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bnlab_callbacks import GradientMonitor, TrainingDiagnosis
from bnlab_callbacks.diagnosis.watching.step_collector import StepCollector
from tests.callbacks.small_runs import Module, hooks_of, loader, memory, trainer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # of BackboneFinetuning
    pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist", "ignore:.*ModelCheckpoint"),
]


class Hand(pl.Callback):
    """Root mean squares of each step's gradients, and how far it moved the parameters, computed plainly."""

    def __init__(self, *tensors: str) -> None:
        self.tensors = tensors
        self.steps: list[dict[str, tuple[float, float]]] = []

    def values(self, module: pl.LightningModule) -> dict[str, Tensor]:
        named = dict(module.named_parameters())
        return {name: named[name].detach().double().clone() for name in self.tensors or named}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.before = self.values(pl_module)
        self.gradients = {
            name: each.grad.double().square().mean().sqrt().item()
            for name, each in pl_module.named_parameters()
            if each.grad is not None
        }

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *others: Any) -> None:
        moves = {
            name: math.log10((now - self.before[name]).norm() / self.before[name].norm())
            if self.before[name].norm() > 0 and not now.equal(self.before[name])
            else math.nan
            for name, now in self.values(pl_module).items()
        }
        self.steps.append({name: (rms, moves[name]) for name, rms in self.gradients.items()})


def small() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = [nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU()]
        return nn.Sequential(*first, nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))


# all parameters


def test_all_parameters_are_recorded_with_the_weights_numbers_as_ever() -> None:
    hand, all_of_them = Hand(), GradientMonitor(parameters="all")
    run = trainer(all_of_them, hand)
    run.fit(Module(small()), loader())
    weights = trainer(GradientMonitor())
    weights.fit(Module(small()), loader())
    ours, usual = memory(run), memory(weights)
    for tag in usual.tags() - {"diagnostics/overhead_frac"}:
        assert ours.series(tag) == usual.series(tag), tag  # the depth slope, too
    names = {
        "00_net.0": "net.0.weight",
        "01_net.3": "net.3.weight",
        "02_net.5": "net.5.weight",
        "03_net.0.bias": "net.0.bias",
        "04_net.1.weight": "net.1.weight",
        "05_net.1.bias": "net.1.bias",
        "06_net.3.bias": "net.3.bias",
        "07_net.4.weight": "net.4.weight",
        "08_net.4.bias": "net.4.bias",
        "09_net.5.bias": "net.5.bias",
    }
    assert {tag.partition("/")[2] for tag in ours.tags() if tag.startswith("grad_rms/")} == set(names)
    for layer, parameter in names.items():
        for step in range(3):
            rms, move = hand.steps[step][parameter]
            assert ours.series(f"grad_rms/{layer}")[step][1] == pytest.approx(rms, rel=1e-5, abs=1e-12)
            if math.isfinite(move) and parameter != "net.0.bias":  # before batch norm: its gradient is rounding
                assert ours.series(f"update_ratio/{layer}")[step][1] == pytest.approx(move, abs=1e-4), layer


def test_a_diagnosis_beside_it_sees_the_same_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[dict[str, float]]] = []
    add = StepCollector.add_record

    def note(self: StepCollector, step: int, values: dict[str, float]) -> None:
        seen[-1].append(values)
        add(self, step, values)

    monkeypatch.setattr(StepCollector, "add_record", note)
    for beside in ([], [GradientMonitor(parameters="all")]):
        seen.append([])
        trainer(*beside, TrainingDiagnosis(summary=False)).fit(Module(small()), loader())
    assert seen[0] == seen[1]
    assert any("grad_rms/00_net.0" in values for values in seen[0])


def test_a_filter_may_name_a_bias_only_where_biases_are_recorded() -> None:
    monitor = GradientMonitor(layers=r"3\.bias$", parameters="all")
    trainer(monitor).fit(Module(small()), loader())
    assert {tag.partition("/")[2] for tag in monitor.latest} == {"06_net.3.bias"}
    with pytest.warns(UserWarning, match="there are: net.0, net.3, net.5"):
        trainer(GradientMonitor(layers="bias")).fit(Module(small()), loader())
    with pytest.raises(ValueError, match="parameters='biases' is neither"):
        GradientMonitor(parameters="biases")  # type: ignore[arg-type]


# effective weights


class Effective(Hand):
    """The tensors that linear layers compute with."""

    def values(self, module: pl.LightningModule) -> dict[str, Tensor]:
        return {name: module.get_submodule(name).weight.detach().double().clone() for name in self.tensors}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.before, self.gradients = self.values(pl_module), dict.fromkeys(self.tensors, 0.0)


def test_a_weight_normed_layer_moves_as_far_as_its_effective_weight() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3))
    run = trainer(GradientMonitor(), hand := Effective("net.0", "net.2"))
    run.fit(Module(net), loader())
    for layer, name in (("00_net.0", "net.0"), ("01_net.2", "net.2")):
        moves = [value for _, value in memory(run).series(f"update_ratio/{layer}")]
        assert moves == pytest.approx([step[name][1] for step in hand.steps], abs=1e-4)


def test_a_layer_that_is_pruned_in_the_middle_goes_on_under_its_name() -> None:
    class Pruned(Hand):
        def values(self, module: pl.LightningModule) -> dict[str, Tensor]:
            layer: Any = module.net[0]  # type: ignore[index, union-attr]
            weight = layer.weight_orig * layer.weight_mask if hasattr(layer, "weight_mask") else layer.weight
            return {"net.0": weight.detach().double().clone()}

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.before, self.gradients = self.values(pl_module), {"net.0": 0.0}

    net = small()
    pruning = ModelPruning("l1_unstructured", [(net[0], "weight")], amount=0.5, verbose=0, make_pruning_permanent=False)
    run = trainer(GradientMonitor(), hand := Pruned(), pruning, max_epochs=2)
    run.fit(Module(net, lambda parameters: torch.optim.SGD(parameters, lr=0.1, weight_decay=0.5)), loader())
    assert not [tag for tag in memory(run).tags() if "weight_orig" in tag]
    zeros = [value for _, value in memory(run).series("grad_zero_frac/00_net.0")]
    assert zeros[:3] == [0.0] * 3
    assert zeros[3:] == [0.5] * 3
    moves = [value for _, value in memory(run).series("update_ratio/00_net.0")]
    # decay moves what is pruned away, too, but nothing computes with that
    assert moves == pytest.approx([step["net.0"][1] for step in hand.steps], abs=1e-4)


# layers that join later


class Tuned(Module):
    """A frozen backbone, which is set free after two epochs."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.backbone = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
            self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.backbone(x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], lr=0.1)


class Thaw(pl.Callback):
    """Sets the backbone free at the start of an epoch; the optimizer has it already."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.backbone.requires_grad_(trainer.current_epoch >= self.epoch)


def test_a_filter_that_names_frozen_layers_waits_for_them() -> None:
    monitor = GradientMonitor(every_n_steps=100, layers="backbone")
    run = trainer(monitor, BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False), max_epochs=4)
    run.fit(model := Tuned(), loader())
    assert memory(run).steps("grad_rms/01_backbone.0") == [6, 9]
    assert memory(run).steps("grad_rms/02_backbone.2") == [6, 9]
    assert hooks_of(model) == []


def test_a_filter_that_names_lazy_layers_waits_for_their_shapes() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.LazyLinear(3))
    run = trainer(GradientMonitor(layers="net.2"))
    run.fit(Module(net), loader())
    assert memory(run).steps("grad_rms/01_net.2") == [0, 1, 2]


@pytest.mark.parametrize("resumed_at", [1, 3])
def test_numbers_stay_when_a_run_goes_on_before_or_after_layers_were_set_free(tmp_path: Path, resumed_at: int) -> None:
    class All(Tuned):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole = trainer(GradientMonitor(parameters="all"), Thaw(2), saver, max_epochs=5, enable_checkpointing=True)
    frozen = All()
    frozen.backbone.requires_grad_(False)
    whole.fit(frozen, loader())
    model = All()
    model.backbone.requires_grad_(resumed_at >= 2)
    rest = trainer(GradientMonitor(parameters="all"), Thaw(2), max_epochs=5)
    rest.fit(model, loader(), ckpt_path=str(tmp_path / f"epoch={resumed_at - 1}.ckpt"), weights_only=True)
    names = {tag.partition("/")[2] for tag in memory(whole).tags() if tag.startswith("grad_rms/")}
    assert {"00_head", "01_backbone.0", "02_backbone.2", "03_backbone.0.bias"} <= names
    for name in names:
        after = [(step, value) for step, value in memory(whole).series(f"grad_rms/{name}") if step >= 3 * resumed_at]  # type: ignore[operator]
        assert memory(rest).series(f"grad_rms/{name}") == after
    slopes = [pair for pair in memory(whole).series("grad_depth_slope") if pair[0] >= 3 * resumed_at]  # type: ignore[operator]
    assert memory(rest).series("grad_depth_slope") == slopes


def test_a_layer_that_is_added_in_the_middle_is_recorded() -> None:
    class Grows(Module):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                self.net.append(nn.Linear(3, 3))  # type: ignore[operator, union-attr]
                self.optimizers().add_param_group({"params": list(self.net[-1].parameters())})  # type: ignore[union-attr, index]

    run = trainer(GradientMonitor())
    run.fit(Grows(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))), loader())
    assert memory(run).steps("grad_rms/01_net.2") == [0, 1, 2]
    assert memory(run).steps("grad_rms/02_net.3") == [1, 2]


# steps that are none


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_that_is_skipped_is_made_up_for_by_the_next_one() -> None:
    class Skips(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx in (0, 4):
                return None  # type: ignore[return-value]
            return F.mse_loss(self(batch[0]), batch[1])

    run = trainer(GradientMonitor(every_n_steps=4))
    run.fit(Skips(small()), loader(64))
    assert memory(run).steps("grad_rms/00_net.0") == [1, 5]
