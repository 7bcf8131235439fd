"""Preflight: closed forms, hand-made faults, nothing left changed, and the real command line."""

import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from bnlab.cli.main import main
from bnlab_callbacks.core.lightning.repeatable_step import LightningStep
from bnlab_callbacks.diagnosis.preflight import Preflight, preflight
from bnlab_callbacks.diagnosis.preflight.curvature import largest_curvature, stable_limit
from bnlab_callbacks.diagnosis.preflight.lightning_preflight import _plain_trainer
from bnlab_callbacks.diagnosis.preflight.theory import fan_scales, gaussian_moments
from bnlab_callbacks.replica.step_replica import StepReplica

CONFIGS = Path(__file__).parents[2] / "configs"
pytestmark = pytest.mark.usefixtures("one_thread")


class Net(LightningModule):
    """A classifier around any net."""

    def __init__(self, net: nn.Module, lr: float = 0.01, **options: Any) -> None:
        super().__init__()
        self.net, self.lr, self.options = net, lr, options

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, **self.options)


class Quadratic(LightningModule):
    """½ Σ λᵢ wᵢ²."""

    def __init__(self, curvatures: list[float], optimizer: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, len(curvatures) + 1))
        self.curvatures, self.optimizer = curvatures, optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (torch.tensor(self.curvatures) * self.weight.square()).sum() / 2

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def batch(samples: int = 64, features: int = 20, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Standardised noise with labels."""
    return torch.randn(samples, features), torch.arange(samples) % classes


def mlp(
    width: int = 20, depth: int = 3, activation: type[nn.Module] = nn.ReLU, std: float | None = None
) -> nn.Sequential:
    """A net with 5 outputs; He's weights without a `std`."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(20 if not layers else width, width), activation()]
    net = nn.Sequential(*layers, nn.Linear(width, 5))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std or math.sqrt(2 / layer.in_features))
            nn.init.zeros_(layer.bias)
    return net


def severities(found: Preflight, name: str) -> list[str]:
    return [check.severity for check in found.checks if check.name == name]


def test_gaussian_moments_are_those_of_the_closed_forms() -> None:
    relu = gaussian_moments(nn.ReLU(), 0.0, 3.0)
    assert relu.square == pytest.approx(4.5, rel=1e-3)  # half of the variance
    assert relu.slope_square == pytest.approx(0.5, rel=1e-3)
    identity = gaussian_moments(nn.Identity(), 2.0, 3.0)
    assert identity == pytest.approx((13.0, 1.0), rel=1e-9)
    leaky = gaussian_moments(nn.PReLU(4, init=0.5), 0.0, 1.0)
    assert leaky == pytest.approx((0.625, 0.625), rel=1e-3)
    assert gaussian_moments(nn.Sigmoid(), 0.0, 1e-3).square == pytest.approx(0.25, rel=1e-5)


def test_fan_scales_count_the_kernel() -> None:
    assert fan_scales(torch.full((7, 3), 2.0)) == (12.0, 28.0)
    assert fan_scales(torch.full((7, 3, 2, 2), 1.0)) == (12.0, 28.0)
    assert fan_scales(torch.full((3, 7, 2, 2), 1.0), transposed=True) == (12.0, 28.0)


def test_kaiming_keeps_the_variance_forward_and_backward() -> None:
    torch.manual_seed(1)
    net = mlp(width=800, depth=4)
    found = preflight(Net(net), batch(256))
    for row in found.layers[1:-1]:
        assert row.gain == pytest.approx(1.0, abs=0.15)
        assert row.gain_expected == pytest.approx(1.0, abs=0.1)
    for row in found.layers[:-2]:
        assert row.grad_gain == pytest.approx(1.0, abs=0.15)
        assert row.grad_gain_expected == pytest.approx(1.0, abs=0.1)
    assert [row.activation for row in found.layers] == ["ReLU"] * 4 + [None]
    assert found.verdict in ("ok", "note")


def test_measured_numbers_are_those_of_a_net_by_hand() -> None:
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    found = preflight(Net(net), (torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])))
    first, last = found.layers
    assert first.z_std == pytest.approx(math.sqrt(2.5))  # of 1, −1, 2, −2
    assert last.z_std == pytest.approx(math.sqrt(11) / 4)  # of 1, 0, 2, 0
    assert last.gain == pytest.approx(11 / 16 / 2.5)
    assert last.gain_expected == pytest.approx(0.5, rel=1e-3)
    assert first.dead == 0.5
    (check,) = [check for check in found.checks if check.name == "exploding"]
    assert check.value == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2)
    assert check.expected == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("optimizer", "limit"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 2 / 8),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 2 * 1.9 / 8),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), 2 * 1.9 / 4),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 2 * 1.9 / (2.8 * 8)),
    ],
)
def test_the_limit_is_where_the_optimizer_itself_diverges(optimizer: Any, limit: float) -> None:
    found = preflight(Quadratic([-20.0, 1.0, 8.0, 3.0], optimizer), torch.zeros(1))
    (check,) = [check for check in found.checks if check.name == "learning_rate_too_high"]
    assert check.expected == pytest.approx(limit, rel=1e-5)
    for factor, diverges in ((0.98, False), (1.02, True)):
        weight = nn.Parameter(torch.ones(1))
        real = optimizer([weight])
        real.param_groups[0]["lr"] = limit * factor
        for _ in range(2000):
            weight.grad = 8 * weight.detach()
            real.step()
        assert (not abs(weight.item()) <= 1) is diverges  # NaN is far away, too


def test_curvature_is_the_largest_eigenvalue_also_by_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Quadratic([-20.0, 1.0, 8.0, 3.0], lambda p: torch.optim.SGD(p, lr=0.1))
    step = StepReplica(LightningStep(_plain_trainer(), 0), module, torch.zeros(1))
    grads = step.evaluate({}).grads
    exact = largest_curvature(step, grads)
    assert exact.largest == pytest.approx(8.0, rel=1e-5)
    assert exact.method == "double backward"

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no second derivative")

    monkeypatch.setattr("bnlab_callbacks.diagnosis.preflight.curvature._by_double_backward", refuse)
    differences = largest_curvature(step, grads)
    assert differences.largest == pytest.approx(8.0, rel=1e-2)
    assert differences.method == "differences of gradients"


def test_adam_has_no_limit_and_says_so() -> None:
    module = Quadratic([1.0, 2.0], lambda p: torch.optim.Adam(p, lr=0.1))
    assert stable_limit(module.configure_optimizers(), 2.0) is None
    (check,) = preflight(module, torch.zeros(1)).found("learning_rate_too_high")
    assert check.severity == "note"
    assert "no limit is known for Adam" in check.text


@pytest.mark.parametrize(("lr", "severity"), [(0.01, "ok"), (0.4, "note"), (20.0, "warning")])
def test_learning_rate_against_the_limit(lr: float, severity: str) -> None:
    found = preflight(Quadratic([8.0], lambda p: torch.optim.SGD(p, lr=lr)), torch.zeros(1))
    assert severities(found, "learning_rate_too_high") == [severity]


def test_faults_are_named_at_their_layer() -> None:
    inputs, labels = batch()
    assert preflight(Net(mlp()), (inputs, labels)).verdict in ("ok", "note")

    def found(net: nn.Module, x: Tensor = inputs, **options: Any) -> dict[str, tuple[str, str | None]]:
        checks = preflight(Net(net, **options), (x, labels)).checks[::-1]  # the worst of a name stays
        return {
            check.name: (check.severity, check.layer) for check in checks if check.severity in ("failing", "warning")
        }

    high = found(mlp(std=10.0))
    assert high["exploding"][0] == "failing"
    assert high["poor_initialisation"] == ("warning", "net.0")
    low = found(mlp(std=1e-4))
    assert low["collapsed_output"][0] == "failing"
    assert low["vanishing"][0] == "failing"
    assert low["poor_initialisation"] == ("warning", "net.0")
    assert found(mlp(), inputs * 100 + 50)["inputs_not_standardised"][0] == "warning"
    broken = inputs.clone()
    broken[3, 2] = math.nan
    assert found(mlp(), broken)["non_finite"] == ("failing", "net.0")
    net = mlp()
    nn.init.constant_(net[2].bias, -50.0)
    assert found(net)["dead_units"] == ("failing", "net.2")
    net = mlp()
    nn.init.constant_(net[2].weight, 0.1)
    assert found(net)["poor_initialisation"] == ("failing", "net.2")
    net = mlp()
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[4].weight)
    assert found(net)["poor_initialisation"] == ("failing", "net.2")


def test_an_output_layer_that_begins_at_zero_is_a_note() -> None:
    net = mlp()
    nn.init.zeros_(net[-1].weight)
    found = preflight(Net(net), batch())
    assert found.verdict == "note"
    assert [(check.severity, check.layer) for check in found.found("poor_initialisation")] == [("note", "net.6")]


def test_parameters_that_will_not_learn() -> None:
    class Partial(Net):
        def __init__(self) -> None:
            super().__init__(mlp())
            self.unused = nn.Linear(3, 3)
            for parameter in self.net[0].parameters():
                parameter.requires_grad_(False)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net[2].parameters(), lr=0.01)

    found = preflight(Partial(), batch())
    (unused,) = found.found("no_gradient")
    assert (unused.severity, unused.layer, unused.value) == ("note", "unused", 2)
    forgotten, frozen = found.found("not_updated")
    assert (forgotten.severity, forgotten.layer) == ("warning", "net.4.weight")
    assert (frozen.severity, frozen.layer) == ("note", "net.0")


def test_a_target_network_rests_also_where_it_runs_first() -> None:
    class Target(Net):
        def __init__(self) -> None:
            super().__init__(nn.ModuleDict({"target": mlp(), "online": mlp()}))

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            with torch.no_grad():
                aim = self.net["target"](batch[0])
            return (self.net["online"](batch[0]) - aim).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.net["online"].parameters())

    found = preflight(Target(), batch())
    assert found.found("no_gradient") == found.found("not_updated") == []


def test_parts_are_named_by_execution() -> None:
    class Backwards(Net):
        def __init__(self) -> None:
            super().__init__(nn.ModuleDict({name: nn.Linear(20, 20) for name in ("d", "c", "b", "a")}))
            self.net["a"].requires_grad_(False)  # type: ignore[index]
            self.net["b"].requires_grad_(False)  # type: ignore[index]

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            x = batch[0]
            for name in ("a", "b", "c", "d"):
                x = torch.tanh(self.net[name](x))  # type: ignore[index]
            return x.square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    forgotten, frozen = preflight(Backwards(), batch()).found("not_updated")
    assert (forgotten.layer, frozen.layer) == ("net.c.weight", "net.a")


def test_activations_that_work_in_place() -> None:
    net = nn.Sequential(
        nn.Linear(20, 20), nn.ReLU(inplace=True), nn.Linear(20, 20), nn.Hardswish(inplace=True), nn.Linear(20, 5)
    )
    found = preflight(Net(net), batch())
    assert found.verdict in ("ok", "note")
    assert all(row.gain_expected is not None for row in found.layers[1:])


def test_functions_are_judged_as_modules_are() -> None:
    """Activations, norms and what passes signals on."""

    class Functions(Net):
        def forward(self, x: Tensor) -> Tensor:
            net: Any = self.net
            x = F.batch_norm(net[0](x), None, None, training=True)
            x = net[3](torch.relu(F.dropout(x, 0.0)))
            return net[6](F.hardtanh(x.view(len(x), -1), 0, 6, inplace=True))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

    torch.manual_seed(0)
    norm = nn.BatchNorm1d(30, affine=False)
    layers = [nn.Linear(20, 30), norm, nn.ReLU(), nn.Linear(30, 30), nn.Flatten(), nn.ReLU6(), nn.Linear(30, 5)]
    with torch.no_grad():
        layers[3].bias[:7] = -100  # type: ignore[index, operator]
    net = nn.Sequential(*layers)
    data = batch()
    modules = preflight(Net(net), data, curvature_steps=0)
    functions = preflight(Functions(net), data, curvature_steps=0)
    for one, other in zip(modules.layers, functions.layers, strict=True):
        assert {**asdict(other), "activation": None, "norm_values": None} == pytest.approx(
            {**asdict(one), "activation": None, "norm_values": None}
        )
    assert [row.activation for row in functions.layers] == ["relu", "relu6", None]
    assert functions.layers[1].dead == pytest.approx(7 / 30, abs=0.05)


def test_what_begins_at_zero_or_near_it_on_purpose_is_not_failing() -> None:
    class Block(nn.Module):
        def __init__(self, gain: float) -> None:
            super().__init__()
            self.branch, self.gain = nn.Linear(20, 20), nn.Parameter(torch.full((20,), gain))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.gain * torch.tanh(self.branch(x))

    for gain in (0.0, 1e-8):
        assert preflight(Net(nn.Sequential(Block(gain), nn.Linear(20, 5))), batch()).verdict in ("ok", "note")
    zeros = nn.Sequential(nn.Linear(20, 20), nn.LayerNorm((64, 20)), nn.Linear(20, 5))
    nn.init.zeros_(zeros[2].weight)
    assert preflight(Net(zeros), batch()).verdict == "note"


def test_a_loss_that_does_not_depend_on_the_weights() -> None:
    class Rounded(Net):
        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.net(batch[0]).round().square().mean()

    class Cut(Net):
        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.net(batch[0]).square().mean().detach().requires_grad_()

    for kind in (Rounded, Cut):
        (check,) = preflight(kind(mlp()), batch()).found("independent_loss")
        assert (check.severity, check.advice_key) == ("failing", "way_to_the_loss")


def test_a_step_that_needs_a_run_is_no_failure() -> None:
    class Asking(Net):
        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            raise LookupError("there is no epoch yet")

    (check,) = preflight(Asking(mlp()), batch()).found("no_gradient")
    assert (check.severity, check.text) == ("warning", "there is no epoch yet")


def test_a_loss_without_a_graph() -> None:
    class Detached(Net):
        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return super().training_step(batch).detach()

    (check,) = preflight(Detached(mlp()), batch()).found("no_gradient")
    assert check.severity == "failing"


def test_batch_norm_in_evaluation_mode_and_with_few_values() -> None:
    net = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 5))
    assert severities(preflight(Net(net), batch()), "batch_norm_small_batch") == ["ok"]
    (few,) = preflight(Net(net), batch(4)).found("batch_norm_small_batch")
    assert (few.severity, few.layer, few.value) == ("warning", "net.1", 4)
    assert preflight(Net(net), batch(1)).found("batch_norm_small_batch")[0].severity == "failing"
    net[1].eval()
    (still,) = preflight(Net(net), batch()).found("batch_norm_eval_mode")
    assert (still.severity, still.layer) == ("warning", "net.1")


def test_nothing_is_changed() -> None:
    net = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 5))
    module, (inputs, labels) = Net(net, momentum=0.9), batch()
    module.training_step = module.training_step  # type: ignore[method-assign] # as torch.compile leaves it
    del module.training_step
    module.net[0].weight.grad = torch.full_like(module.net[0].weight, 3.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    kept = inputs.clone()
    hooks = [len(part._forward_hooks) for part in module.modules()]
    first = preflight(module, (inputs, labels))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert torch.equal(inputs, kept)
    assert module.net[4].weight.grad is None
    assert torch.equal(module.net[0].weight.grad, torch.full((20, 20), 3.0))
    assert [len(part._forward_hooks) for part in module.modules()] == hooks
    assert module._trainer is None
    assert module.training
    assert preflight(module, (inputs, labels)).to_dict() == first.to_dict()


def test_text_and_json_hold_all_of_it() -> None:
    found = preflight(Net(mlp(std=100.0, depth=6)), batch())
    text = found.table()
    assert "verdict: failing" in text
    assert "failing exploding" in text
    assert max(map(len, text.splitlines())) < 200
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["verdict"] == "failing"
    assert [row["layer"] for row in content["layers"]] == [f"net.{i}" for i in range(0, 13, 2)]


def test_what_cannot_be_repeated_is_not_checked() -> None:
    module = Net(mlp())
    module.automatic_optimization = False
    found = preflight(module, batch())
    assert "manual optimization" in found.not_checked["step"]
    assert severities(found, "inputs_not_standardised") == ["ok"]


def command(*words: str) -> int:
    """The exit status of `bnlab preflight`."""
    try:
        main(["preflight", "--trainer.accelerator", "cpu", *words])
    except SystemExit as end:
        return int(str(end.code))
    return 0


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("--config", str(CONFIGS / "mlp_relu.yaml"), "--json", "found.json") == 0
    assert "verdict: ok" in capsys.readouterr().out
    assert json.loads(Path("found.json").read_text())["verdict"] == "ok"
    assert command("--config", str(CONFIGS / "mlp_init_low.yaml")) == 1
    assert "failing vanishing at net.fc1" in capsys.readouterr().out
    assert command("--config", str(CONFIGS / "mlp_init_low.yaml"), "--model.batch_norm", "true") == 0
    assert command("--config", str(CONFIGS / "mlp_lr_high.yaml"), "--model.lr", "5") == 0  # not failing
    assert "warning learning rate too high" in capsys.readouterr().out
    assert command("--json", "nowhere/found.json") == 2
    assert "there is no folder nowhere" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
