"""Activations that are no modules, seen in nets' forward passes: which count, under which names, with which values."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchmetrics import Metric

from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.core.shared import SharedRecorders
from bnlab_callbacks.recorders.activation_calls import Call
from bnlab_callbacks.recorders.activation_tables import ActivationTables
from bnlab_callbacks.recorders.activations import ActivationRecorder
from tests.recorders.everything import Everything


class Run:
    """A plain training loop's steps with a recorder."""

    def __init__(self, model: nn.Module) -> None:
        self.shared = SharedRecorders(Ranks())
        self.reader = Everything()
        self.recorder = self.shared.join(ActivationRecorder, self.reader, model)
        self.steps = 0

    def step(self, *passes: Callable[[], Any]) -> dict[str, Call]:
        """One step that runs these; the calls that were recorded, by name."""
        self.recorder.begin_batch(Moment(self.steps, 0), self.steps)
        for each in passes:
            each()
        self.recorder.before_backward()
        self.steps += 1
        self.reader.steps.clear()
        self.recorder.end_batch(Moment(self.steps, 0), self.steps)
        assert self.recorder.failure is None
        return dict(self.reader.steps[0].calls) if self.reader.steps else {}


@pytest.fixture(autouse=True)
def no_mode_is_left() -> Iterator[None]:
    yield
    assert not torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]


def seen(model: nn.Module, *inputs: Any) -> list[str]:
    """The names that one step records, in order."""
    run = Run(model)
    names = list(run.step(lambda: model(*inputs)))
    run.recorder.leave(run.reader)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return names


class Calls(nn.Module):
    """A linear layer, and then whatever is given."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.fc(x))


FUNCTIONS: dict[str, Sequence[Callable[[Tensor], Tensor]]] = {
    "relu": (
        *(F.relu, torch.relu, Tensor.relu, lambda x: F.relu(x, inplace=True), lambda x: x.relu_(), torch.relu_),
        *(lambda x: nn.ReLU()(x), lambda x: nn.functional.relu_(x)),
    ),
    "relu6": (F.relu6, lambda x: F.hardtanh(x, 0, 6), lambda x: F.hardtanh(x, min_val=0.0, max_val=6.0)),
    "leaky_relu": (F.leaky_relu, lambda x: F.leaky_relu(x, 0.2, True), lambda x: F.leaky_relu_(x, 0.2)),
    "prelu": (lambda x: F.prelu(x, torch.tensor(0.1)), lambda x: x.prelu(torch.tensor(0.1))),
    "rrelu": (F.rrelu,),
    "elu": (F.elu, lambda x: F.elu(x, 0.5, inplace=True)),
    "selu": (F.selu, torch.selu),
    "celu": (F.celu, torch.celu),
    "gelu": (F.gelu, lambda x: F.gelu(x, approximate="tanh")),
    "silu": (F.silu, lambda x: F.silu(x, inplace=True)),
    "mish": (F.mish,),
    "softplus": (F.softplus, lambda x: F.softplus(x, beta=2)),
    "sigmoid": (F.sigmoid, torch.sigmoid, Tensor.sigmoid, lambda x: x.sigmoid_(), torch.special.expit),
    "logsigmoid": (F.logsigmoid,),
    "hardsigmoid": (F.hardsigmoid,),
    "hardswish": (F.hardswish,),
    "hardtanh": (F.hardtanh, lambda x: F.hardtanh(x, -2, 2)),
    "tanh": (F.tanh, torch.tanh, Tensor.tanh, lambda x: x.tanh_()),
    "softsign": (F.softsign,),
    "glu": (F.glu,),
    "threshold": (lambda x: F.threshold(x, 0.1, 0.0),),
    "hardshrink": (F.hardshrink,),
    "softshrink": (F.softshrink,),
    "tanhshrink": (F.tanhshrink,),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_way_to_write_a_function_is_seen_once_with_the_values_of_its_output(name: str) -> None:
    for function in FUNCTIONS[name]:
        torch.manual_seed(0)
        net = Calls(function)
        x = 3 * torch.randn(16, 6)
        run = Run(net)
        outputs: list[Tensor] = []
        calls = run.step(lambda net=net, x=x, outputs=outputs: outputs.append(net(x).detach()))
        assert list(calls) == [name]
        (table,) = ActivationTables().read(run.reader.steps)
        got = dict(zip(table.tags, table.values[0].tolist(), strict=True))
        a = outputs[0].double()
        assert got[f"act_mean/00_{name}"] == pytest.approx(float(a.mean()), rel=1e-6, abs=1e-9)
        assert got[f"act_std/00_{name}"] == pytest.approx(float(a.std(correction=0)), rel=1e-6)
        assert got[f"act_absmax/00_{name}"] == pytest.approx(float(a.abs().max()))
        run.recorder.leave(run.reader)


def test_saturation_goes_by_the_arguments_of_the_call() -> None:
    x = torch.tensor([[-3.0, -1.5, 0.5, 1.5, 3.0, 7.0]])
    shares = {
        lambda x: F.hardtanh(x): (2 / 6, 3 / 6),
        lambda x: F.hardtanh(x, -2, 2): (1 / 6, 2 / 6),
        lambda x: F.hardtanh(x, 0, 6): (None, None),  # ReLU6: its lower side is `zero_frac`
        lambda x: torch.sigmoid(10 * x): (2 / 6, 4 / 6),
    }
    for function, (low, high) in shares.items():
        net = Calls(function)
        net.fc = nn.Linear(6, 6, bias=False)
        nn.init.eye_(net.fc.weight)
        run = Run(net)
        ((name, _),) = run.step(lambda net=net: net(x)).items()
        (table,) = ActivationTables().read(run.reader.steps)
        got = dict(zip(table.tags, table.values[0].tolist(), strict=True))
        assert (got.get(f"sat_lo/00_{name}"), got.get(f"sat_hi/00_{name}")) == (low, high)
        if name == "relu6":
            assert got["sat_frac/00_relu6"] == 1 / 6
            assert got["zero_frac/00_relu6"] == 2 / 6


class QuickGELUActivation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class SigmoidFocalLoss(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) ** 2


def test_composites_count_once_under_their_own_name() -> None:
    net = nn.Sequential(nn.Linear(6, 4), QuickGELUActivation(), nn.Linear(4, 4), Swish(), SigmoidFocalLoss())
    assert seen(net, torch.randn(8, 6)) == ["1", "3", "4.sigmoid"]


def test_modules_have_their_names_first_and_repeats_take_the_next_free_number() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.relu = nn.ReLU()
            self.tanh = nn.ModuleDict({"2": nn.Tanh()})

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.fc(x)) + self.relu(x)
            x = self.relu(x).tanh() + x.tanh() + self.tanh["2"](x)
            return F.relu(x)

    names = seen(Net(), torch.randn(2, 4))
    assert names == ["relu.2", "relu", "relu.3", "tanh", "tanh.3", "tanh.2", "relu.4"]


def test_characters_that_loggers_refuse_are_replaced_in_tags_alone() -> None:
    net = nn.Sequential(nn.ModuleDict({"a b": nn.ReLU(), "a_b": nn.ReLU(), "ä#2": nn.ReLU()}))
    net.forward = lambda x: [module(x) for module in net[0].values()][-1]  # type: ignore[assignment, operator, union-attr]
    run = Run(net)
    assert list(run.step(lambda: net(torch.ones(2, 3)))) == ["0.a b", "0.a_b", "0.ä#2"]
    (table,) = ActivationTables().read(run.reader.steps)
    assert [tag for tag in table.tags if tag.startswith("act_mean")] == [
        *("act_mean/00_0.a_b", "act_mean/01_0.a_b", "act_mean/02_0.__2"),
    ]


class Outside(nn.Module):
    """A net whose training step does more than to run it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Calls(torch.relu)
        self.criterion: nn.Module | None = None
        self.frozen = Calls(torch.tanh).eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def test_what_runs_outside_the_nets_forward_passes_is_none_of_the_nets() -> None:
    model = Outside()
    run = Run(model)
    teacher = copy.deepcopy(model.net)
    x = torch.randn(3, 6)

    def step() -> None:
        F.softplus(torch.sigmoid(model(x))).sum()
        teacher(x)

    assert list(run.step(step)) == ["net.relu"]


def test_what_runs_without_gradients_or_in_evaluation_mode_is_named_once() -> None:
    model = Outside()
    run = Run(model)
    x = torch.randn(3, 6)

    def teach() -> None:
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                model.net(x)

    assert run.step(teach, lambda: model.frozen(x)) == {}
    assert sorted(run.recorder.unseen.lines().values()) == [
        "1 layer runs in evaluation mode: not recorded (frozen.tanh)",
        "1 layer runs without gradients: not recorded (net.relu)",
    ]
    assert list(run.step(lambda: model(x))) == ["net.relu"]
    assert list(run.recorder.unseen.lines().values()) == ["1 layer runs in evaluation mode: not recorded (frozen.tanh)"]


class Sharpness(Metric):
    """With activations of its own, functions and a module."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0))
        self.act = nn.ReLU()

    def update(self, outputs: Tensor) -> None:
        self.total = self.total + torch.sigmoid(self.act(outputs)).sum()

    def compute(self) -> Tensor:
        return self.total  # type: ignore[return-value]


@pytest.mark.parametrize("graph", [True, False])
def test_metrics_do_not_count(graph: bool) -> None:
    model = Outside()
    model.criterion = Sharpness()
    run = Run(model)

    def step() -> None:
        outputs = model(torch.randn(3, 6))
        assert model.criterion is not None
        model.criterion(outputs if graph else outputs.detach())

    assert list(run.step(step)) == ["net.relu"]
    assert run.recorder.unseen.lines() == {}


class Dice(nn.Module):
    """A loss as segmentation libraries write them."""

    def __init__(self, reduce: bool) -> None:
        super().__init__()
        self.reduce = reduce
        self.act = nn.Sigmoid()

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.softplus(outputs) - self.act(outputs) * targets
        return loss.mean() if self.reduce else loss


@pytest.mark.parametrize("reduce", [True, False], ids=["gives one number", "is given targets"])
@pytest.mark.parametrize("classes", [True, False])
def test_losses_that_are_modules_do_not_count(reduce: bool, classes: bool) -> None:
    model = Outside()
    model.criterion = Dice(reduce)
    x = torch.randn(3, 6)
    targets = torch.randint(4, (3,)) if classes and reduce else torch.rand(3, 4)
    run = Run(model)

    def step() -> None:
        assert model.criterion is not None
        model.criterion(model(x), targets if targets.ndim > 1 else F.one_hot(targets, 4))

    assert list(run.step(step)) == ["net.relu"]


def test_a_net_that_gives_its_own_loss_is_none() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Calls(torch.relu)

        def forward(self, x: Tensor, targets: Tensor) -> Tensor:
            return F.mse_loss(torch.tanh(self.net(x)), targets)

    assert seen(Whole(), torch.randn(3, 6), torch.randn(3, 4)) == ["net.relu", "tanh"]


def test_a_training_step_that_a_strategy_runs_in_a_forward_pass_is_outside() -> None:
    """DDP's way: it puts `training_step` where `forward` was, for one call."""
    model = Outside()
    x = torch.randn(3, 6)
    forward = model.forward

    def redirected(*args: Any) -> Tensor:
        model.forward = forward  # type: ignore[method-assign]
        return torch.sigmoid(model(x)).sum()

    def step() -> None:
        model.forward = redirected  # type: ignore[method-assign]
        model()

    assert list(Run(model).step(step)) == ["net.relu"]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.block, self.reentrant = Calls(torch.relu), reentrant

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.block, x.requires_grad_(), use_reentrant=self.reentrant)
        return out


@pytest.mark.parametrize("raw", [True, False], ids=["Tensor.backward", "told of"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointings_second_forward_pass_does_not_count(reentrant: bool, raw: bool) -> None:
    model = Checkpointed(reentrant)
    run = Run(model)
    x = torch.randn(3, 6)

    def step() -> None:
        loss = model(x).sum()
        if not raw:
            run.recorder.before_backward()
        loss.backward()

    assert list(run.step(step)) == ["block.relu"]


def test_many_calls_behind_one_layer_are_one_layer_and_many_layers_stay_many() -> None:
    class Unrolled(nn.Module):
        def __init__(self, steps: int) -> None:
            super().__init__()
            self.steps = steps
            self.cell, self.act = nn.Linear(4, 4), nn.Tanh()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.steps):
                x = self.act(self.cell(x))
            for layer in self.layers:
                x = F.relu(layer(x))
            return x

    torch.manual_seed(0)
    relus = ["relu", *(f"relu.{turn}" for turn in range(2, 13))]
    x = torch.randn(2, 4)
    assert seen(Unrolled(8), x) == ["act", *(f"act.{turn}" for turn in range(2, 9)), *relus]
    model = Unrolled(30)
    run = Run(model)
    outputs: list[Tensor] = []
    model.act.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    assert list(dict.fromkeys(run.step(lambda: model(x)))) == ["act", *relus]
    assert len(run.reader.steps[0].calls) == 30 + 12
    (table,) = ActivationTables().read(run.reader.steps)
    got = dict(zip(table.tags, table.values[0].tolist(), strict=True))
    a = torch.stack(outputs).double()
    assert got["act_mean/00_act"] == pytest.approx(float(a.mean()), rel=1e-6)
    assert got["act_std/00_act"] == pytest.approx(float(a.std(correction=0)), rel=1e-6)
    model.steps = 5  # one that was joined stays so
    assert list(dict.fromkeys(run.step(lambda: model(x)))) == ["act", *relus]


def test_a_layer_under_a_transform_of_torch_func_is_left_out_and_the_rest_goes_on() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = Calls(torch.tanh), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.outer(torch.func.vmap(self.inner)(x)))

    run = Run(model := Mixed())
    x = torch.randn(3, 6)
    assert list(run.step(lambda: model(x))) == ["relu"]
    assert list(run.recorder.unseen.lines().values()) == [
        "1 layer runs under a transform of torch.func: not recorded (inner.tanh)"
    ]
    assert list(run.step(lambda: torch.func.jacrev(lambda z: model.outer(z).relu())(torch.randn(4)))) == []


class GeometricTensor:
    """As escnn wraps its tensors."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class WrappedReLU(nn.Module):
    def forward(self, x: GeometricTensor) -> GeometricTensor:
        return GeometricTensor(torch.relu(x.tensor))


class LateReLU(nn.Module):
    """Nothing can be read of what it gives."""

    def forward(self, x: Tensor) -> list[str]:
        return ["later"]


def test_wrapped_tensors_are_unwrapped_or_named_once() -> None:
    net = nn.Sequential(nn.Linear(6, 4), WrappedReLU())
    net.forward = lambda x: net[1](GeometricTensor(net[0](x)))  # type: ignore[method-assign, assignment]
    run = Run(net)
    assert list(run.step(lambda: net(torch.randn(3, 6)))) == ["1"]
    (table,) = ActivationTables().read(run.reader.steps)
    assert "dead_frac/00_1" in table.tags  # it is the ReLU that it calls
    run = Run(net := nn.Sequential(nn.Linear(6, 4), LateReLU()))
    run.step(lambda: net(torch.randn(3, 6)))
    run.step(lambda: net(torch.randn(3, 6)))
    assert list(run.recorder.unseen.lines().values()) == [
        "1 layer gives no dense tensor of floating-point numbers: not recorded (1)"
    ]


def test_a_scalar_gate_is_recorded() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.gate, self.scale = nn.Linear(6, 4), nn.Parameter(torch.tensor(0.3)), nn.Softplus()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * torch.sigmoid(self.gate) * self.scale(self.gate)

    run = Run(model := Gated())
    assert list(run.step(lambda: model(torch.randn(3, 6)))) == ["sigmoid", "scale"]
    assert run.recorder.gates == {"sigmoid", "scale"}
    (table,) = ActivationTables().read(run.reader.steps)
    got = dict(zip(table.tags, table.values[0].tolist(), strict=True))
    assert got["act_mean/00_sigmoid"] == pytest.approx(float(torch.sigmoid(torch.tensor(0.3))))
    assert got["act_std/00_sigmoid"] == 0


def test_gates_caps_and_scores_are_told_from_what_is_passed_on() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
            self.se = nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).tanh()  # goes on to a layer
            gate = self.se(self.b(x))[:, None].expand(-1, 3, -1)
            x = (gate * x[:, None]).mean(1)
            cap = 30 * F.tanh(self.c(x) / 30)
            score = F.softsign(self.d(x)).softmax(-1)
            return torch.sigmoid(self.a(cap + score))  # the output

    run = Run(model := Many())
    assert list(run.step(lambda: model(torch.randn(5, 4)))) == ["tanh", "se", "tanh.2", "softsign", "sigmoid"]
    assert run.recorder.gates == {"se", "tanh.2", "softsign"}
