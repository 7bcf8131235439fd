"""Layers in a run: in order of execution, those that rest, those that are set free, and what only looks like one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn

from bnlab_callbacks import GradientMonitor, TrainingDiagnosis
from bnlab_callbacks.diagnosis.watching.layer_watch import LayerWatch, resting
from tests.diagnosis.small_runs import Net, batches, fit, net


def definition(pairs: Any) -> list[str]:
    return [layer for layer, _ in pairs]


def test_copies_of_trained_parts_rest() -> None:
    def idle(*layers: str, **shapes: tuple[int, int]) -> list[str]:
        every = {name.replace("_", "."): shape for name, shape in shapes.items()}
        return list(resting(layers, every.keys() - set(layers), every))

    nets = {"online_0_fc": (2, 3), "online_1_fc": (3, 3), "target_0_fc": (2, 3), "target_1_fc": (3, 3), "head": (2, 3)}
    assert idle("target.0.fc", "target.1.fc", "head", **nets) == ["target.0.fc", "target.1.fc"]
    assert idle("target.0.fc", **nets) == []  # a part of it only
    assert idle("target.0.fc", "target.1.fc", **nets | {"target_1_fc": (3, 4)}) == []  # an actor and its critic
    assert idle("net.target.fc", net=(2, 2), net_online_fc=(2, 2), net_target_fc=(2, 2)) == ["net.target.fc"]
    assert idle("net.0", net_0=(2, 2), net_2=(2, 2)) == []  # numbers tell layers apart, not copies


def test_what_has_no_gradient_or_optimizer_is_known_by_execution() -> None:
    model = nn.ModuleDict({name: nn.Linear(3, 3) for name in "abcd"})
    watch = LayerWatch(model, {"b": 0.5, "gone": 1.0})
    optimizer = torch.optim.SGD([*model["a"].parameters(), *model["b"].parameters()], lr=0.1)
    model["d"].requires_grad_(False)
    model["a"](torch.ones(1, 3)).sum().backward()
    watch.look(optimizer)
    facts = watch.facts([optimizer], lambda pairs: definition(pairs)[::-1])
    assert list(facts["weights"]) == ["c", "b", "a"]
    assert facts["without_gradient"] == ("b",)
    assert facts["without_optimizer"] == ("c",)
    assert facts["frozen"] == ("d",)
    assert facts["constant"] == {"b": 0.5}
    model["d"].requires_grad_(True)
    model["b"](torch.ones(1, 3)).sum().backward()
    watch.look(optimizer)
    facts = watch.facts([optimizer], definition)
    assert (facts["without_gradient"], facts["without_optimizer"], facts["frozen"]) == ((), ("c", "d"), ())


def test_the_first_losses_tell_scales_from_layers() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixing = nn.Parameter(torch.ones(3, 3))  # looks like a norm's scale
            self.positions = nn.Parameter(torch.randn(4, 3))  # looks like a layer

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.positions) @ self.mixing

    model = Odd()
    watch = LayerWatch(model, {"mixing": 1.0})
    assert watch.scales == {"mixing"}
    watch.trace(model(torch.ones(4, 3)).sum())
    assert watch.scales == {"positions"}
    assert watch.facts([], definition)["constant"] == {"mixing": 1.0}


class Backwards(Net):
    """Layers that are defined in the reverse of the order in which they run; one is too large to be packed."""

    def __init__(self, held: tuple[str, ...]) -> None:
        super().__init__(nn.Identity())
        self.held = held
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.last, self.middle, self.first = nn.Linear(512, 3), nn.Linear(520, 512), nn.Linear(6, 520)
        for layer in (self.last, self.first):
            nn.init.constant_(layer.weight, 0.01)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = torch.relu(self.middle(torch.relu(self.first(batch[0]))))
        return F.cross_entropy(self.last(hidden), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for name in self.held for p in getattr(self, name).parameters()], lr=1e-3)


def test_layers_are_known_by_execution_in_findings_and_tables(tmp_path: Path) -> None:
    everything = fit(tmp_path / "all", Backwards(("last", "middle", "first")), max_epochs=1)
    assert {one.name: one.layer for one in everything.findings}["poor_initialisation"] == "first"
    assert list(everything._judge.observations[-1].of("grad_rms")) == ["first", "middle", "last"]
    one = fit(tmp_path / "one", Backwards(("middle",)), max_epochs=2)
    assert {finding.name: finding.layer for finding in one.findings}["not_updated"] == "first"
    assert list(one._judge.facts.weights) == ["first", "middle", "last"]


@pytest.mark.filterwarnings("ignore:.*provided params to be frozen already exist")
@pytest.mark.filterwarnings("ignore:.*exist within another group")
def test_layers_that_are_set_free_are_watched_from_then_on(tmp_path: Path) -> None:
    class Tuned(Net):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.backbone = nn.Sequential(nn.Linear(6, 20), nn.ReLU())
            self.head = nn.Linear(20, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05)

    freeing = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01, verbose=False)
    monitor = GradientMonitor(every_n_steps=1)
    diagnosis = fit(tmp_path, Tuned(), callbacks=[freeing, monitor], max_epochs=4)
    assert [tag for tag in monitor.latest if tag.startswith("grad_rms/")] == [
        "grad_rms/01_backbone.0",
        "grad_rms/00_head",
    ]
    assert [finding.name for finding in diagnosis.findings if finding.ended is None] == []
    assert list(diagnosis._judge.observations[-1].of("grad_rms")) == ["backbone.0", "head"]


def test_a_lazy_layer_is_watched_once_it_has_its_shape(tmp_path: Path) -> None:
    lazy = nn.Sequential(nn.LazyLinear(20), nn.ReLU(), nn.Linear(20, 3))
    monitor = GradientMonitor(every_n_steps=1)
    fit(tmp_path, Net(lazy), callbacks=[monitor], max_epochs=1)
    assert {tag for tag in monitor.latest if tag.startswith("grad_rms/")} == {"grad_rms/00_net.0", "grad_rms/01_net.2"}


class Softmax(Net):
    """A softmax over one output: it is 1 whatever the weights are."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch[0])[:, :1].softmax(1), (batch[1] == 1).float()[:, None])


def test_a_loss_that_does_not_depend_on_the_net_is_named(tmp_path: Path) -> None:
    diagnosis = fit(tmp_path, Softmax(net()), max_epochs=2)
    finding = next(one for one in diagnosis.findings if one.name == "independent_loss")
    assert (finding.severity, finding.noticed, finding.advice_keys) == ("failing", 9, ("way_to_the_loss",))
    assert "no_gradient" not in {one.name for one in diagnosis.findings}


class Quiet(Net):
    """A residual branch that begins at 0, with a LayerScale of 1e-6, positions, and a head of zeros."""

    def __init__(self) -> None:
        super().__init__(net(), lr=0.05)
        self.stem, self.branch = nn.Linear(6, 20), nn.Linear(20, 20)
        self.scale = nn.Parameter(torch.full((20, 1), 1e-6))
        self.positions = nn.Parameter(torch.zeros(2, 20))
        self.out = nn.Linear(20, 3)
        nn.init.zeros_(self.out.weight)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.stem(batch[0]) + self.positions[0]
        x = x + self.scale[:, 0] * torch.tanh(self.branch(x))
        return F.cross_entropy(self.out(torch.relu(x)), batch[1])


def test_what_begins_at_zero_on_purpose_is_no_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diagnosis = fit(tmp_path, Quiet(), batches(), diagnosis=TrainingDiagnosis(preflight=True), max_epochs=4)
    grave = [(one.name, one.layer) for one in diagnosis.findings if one.severity != "note"]
    assert [one for one in grave if one[0] != "collapsed_output"] == []
    assert "verdict: note" in capsys.readouterr().out
