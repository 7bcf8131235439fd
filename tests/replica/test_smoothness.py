"""Smoothness and internal covariate shift against slow references, and that a run does not notice them."""

import gc
import random
import weakref
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks import ActivationMonitor, GradientMonitor
from bnlab_callbacks.batch_norm_monitor import BatchNormMonitor
from bnlab_callbacks.replica import step_replica as module_under_test
from bnlab_callbacks.replica.covariate_shift import shift
from tests.callbacks.small_runs import Each, Module, data, hooks_of, loader, memory, mlp, trainer
from tests.callbacks.test_batch_norm_monitor import normalised

LENGTHS = (0.5, 1.0, 2.0, 4.0)
SMOOTHNESS = ("loss_min", "loss_max", "loss_range", "gradient_predictiveness", "effective_beta")


def smooth_monitor(every: int = 1, **options: Any) -> BatchNormMonitor:
    return BatchNormMonitor(smoothness_every_n_steps=every, **options)


def only_smoothness(record: dict[str, float]) -> dict[str, float]:
    return {tag: value for tag, value in record.items() if tag.startswith(("smoothness/", "ics_"))}


class Reference:
    """The same quantities of a Sequential, in float64, from explicit loops over `functional_call`."""

    def __init__(self, net: nn.Sequential, lr: float = 0.1) -> None:
        self.net, self.lr = net.double(), lr

    def gradient(self, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[float, dict[str, Tensor]]:
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        buffers = {name: value.clone() for name, value in self.net.named_buffers()}
        loss = F.mse_loss(functional_call(self.net, (leaves, buffers), (x,)), y)
        return loss.item(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    def record(self, after: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
        """What a step from the net's weights to `after` gives, and the net has those weights then."""
        x, y = x.double(), y.double()
        weights = {name: value.detach().clone() for name, value in self.net.named_parameters()}
        _, g = self.gradient(weights, x, y)
        size = float(torch.cat([v.flatten() for v in g.values()]).norm())
        losses, changes = [], []
        for length in LENGTHS:
            moved = {name: weights[name] - length * self.lr * g[name] for name in weights}
            loss, there = self.gradient(moved, x, y)
            losses.append(loss)
            changes.append(float(torch.cat([(g[name] - there[name]).flatten() for name in g]).norm()))
        found = {
            "smoothness/loss_min": min(losses),
            "smoothness/loss_max": max(losses),
            "smoothness/loss_range": max(losses) - min(losses),
            "smoothness/gradient_predictiveness": max(changes),
            "smoothness/effective_beta": max(c / (e * self.lr * size) for c, e in zip(changes, LENGTHS, strict=True)),
        }
        layers = [name for name, value in weights.items() if value.ndim > 1]
        for place, name in enumerate(layers):
            index = int(name.split(".")[0])
            mixed = {key: after[key].double() if int(key.split(".")[0]) < index else weights[key] for key in weights}
            shifted = self.gradient(mixed, x, y)[1][name]
            found[f"ics_l2/{place:02d}_net.{index}"] = float((g[name] - shifted).norm())
            cosine = float(F.cosine_similarity(g[name].flatten(), shifted.flatten(), dim=0))
            found[f"ics_cos/{place:02d}_net.{index}"] = cosine
        self.net.load_state_dict({**self.net.state_dict(), **after})
        return found


class Weights(pl.Callback):
    """The weights after each optimizer step."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.after.append({n.removeprefix("net."): p.detach().clone() for n, p in pl_module.named_parameters()})


@pytest.mark.parametrize("make", [normalised, mlp])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_every_step_equals_the_slow_reference(make: Callable[[], nn.Sequential], optimizer: Any) -> None:
    """Definition 2.1 and figure 4, with batch norm and without, whatever optimizer moves the weights."""
    each, weights = Each(monitor := smooth_monitor()), Weights()
    run = trainer(monitor, each, weights)
    run.fit(Module(make(), lambda p: optimizer(p, lr=0.1)), loader())
    reference, (x, y) = Reference(make()), data()
    assert len(each.records) == 3
    for step, record in enumerate(each.records):
        batch = slice(8 * step, 8 * step + 8)
        wanted = reference.record(weights.after[step], x[batch], y[batch])
        assert only_smoothness(record) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert memory(run).steps("smoothness/loss_range") == memory(run).steps("train_loss") == [0, 1, 2]


def test_a_quadratic_loss_has_its_closed_form() -> None:
    """L = ½ wᵀHw: the gradient changes by ηHg, so β = ‖Hg‖/‖g‖ for any η."""
    h, start, lr = torch.tensor([4.0, 1.0, 0.25]), torch.tensor([1.0, -2.0, 3.0]), 0.1

    class Quadratic(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(start.clone())

        def training_step(self, batch: Any) -> dict[str, Tensor]:
            return {"loss": 0.5 * (h * self.w.square()).sum()}

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=lr)

    monitor = smooth_monitor()
    trainer(monitor, max_steps=1).fit(Quadratic(), loader())
    g = h * start
    losses = [float(0.5 * (h * (start - length * lr * g).square()).sum()) for length in LENGTHS]
    assert monitor.latest == pytest.approx(
        {
            "smoothness/loss_min": min(losses),
            "smoothness/loss_max": max(losses),
            "smoothness/loss_range": max(losses) - min(losses),
            "smoothness/gradient_predictiveness": float(4 * lr * (h * g).norm()),
            "smoothness/effective_beta": float((h * g).norm() / g.norm()),
        },
        rel=1e-5,
    )


def test_the_shift_of_a_gradient() -> None:
    def values(a: Tensor, b: Tensor) -> list[float]:
        return [float(value) for value in shift(a, b).values()]

    assert values(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])) == pytest.approx([5, 0])
    assert values(torch.tensor([1e-34]), torch.tensor([-1e-34])) == pytest.approx([2e-34, -1], rel=1e-6, abs=0)
    assert values(torch.ones(2), torch.zeros(2)) == pytest.approx([2**0.5, float("nan")], nan_ok=True)


def test_layers_and_numbers_are_those_of_the_gradient_monitor() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.norm, self.early = nn.Linear(5, 3), nn.BatchNorm1d(6), nn.Linear(6, 5)
            self.rnn = nn.LSTM(5, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.late(self.rnn(self.early(self.norm(x)).unsqueeze(1))[0][:, 0])
            return out

    monitor, gradients = smooth_monitor(), GradientMonitor(update_ratio=False)
    trainer(monitor, gradients).fit(Module(Net()), loader())
    names = {tag.partition("/")[2] for tag in gradients.latest if "/" in tag}
    assert {tag.partition("/")[2] for tag in monitor.latest if tag.startswith("ics_cos")} == names
    assert {"00_net.early", "01_net.rnn.weight_ih_l0", "03_net.late"} <= names
    assert monitor.latest["ics_l2/00_net.early"] > 0  # the norm before it moved


def test_the_first_layers_shift_is_none() -> None:
    trainer(monitor := smooth_monitor()).fit(Module(mlp()), loader())
    assert monitor.latest["ics_l2/00_net.0"] == 0
    assert monitor.latest["ics_cos/00_net.0"] == pytest.approx(1)


def test_the_number_of_passes_is_what_the_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = 0
    original = module_under_test.StepReplica.run

    def counted(self: Any, twin: Any) -> Any:
        nonlocal passes
        passes += 1
        return original(self, twin)

    monkeypatch.setattr(module_under_test.StepReplica, "run", counted)
    trainer(smooth_monitor(), max_steps=1).fit(Module(normalised()), loader())
    assert passes == 5 + 2  # the first of three layers needs none


class Lively(pl.LightningModule):
    """Dropout, batch norm, metrics, running counts, Python's and NumPy's random numbers, a logger used directly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.net = nn.Sequential(
            *(nn.ReLU(inplace=True), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
        )
        self.error = torchmetrics.MeanSquaredError()
        self.calls = 0
        self.generator = torch.Generator().manual_seed(1)
        self.losses: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        noise = random.random() + float(np.random.normal()) + torch.rand(1, generator=self.generator)
        x.mul_(1.5)  # batches, too, may be changed
        out = self.net(x) + 0.01 * noise + 0.1 * self.global_step
        self.error(out, y)
        self.log("error", self.error, on_step=True, on_epoch=True)
        loss = F.mse_loss(out, y)
        self.log_dict({"loss": loss, "calls": float(self.calls)}, on_step=True, on_epoch=True)
        self.losses.append(loss.detach())
        self.out = [out]  # has a history, as metrics' last values have
        self.calls += 1
        for logger in self.loggers:
            logger.log_metrics({"direct": float(loss.detach())}, step=self.global_step)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"},
        }


def lively_run(*callbacks: Any, **options: Any) -> dict[str, Any]:
    random.seed(1)
    np.random.seed(2)
    model = Lively()
    torch.manual_seed(3)
    run = trainer(*callbacks, max_epochs=2, **options)
    run.fit(model, DataLoader(TensorDataset(*data()), batch_size=4, shuffle=True))
    assert hooks_of(model) == []
    quiet = [
        (step, {tag: value for tag, value in row.items() if "/" not in tag and "slope" not in tag})
        for step, row in memory(run).rows
    ]
    return {
        "state": [*model.state_dict().values(), *model.losses],
        "grads": [parameter.grad for parameter in model.parameters()],
        "optimizer": [v["momentum_buffer"] for v in run.optimizers[0].state.values()],
        "random": [torch.get_rng_state(), model.generator.get_state()],
        "others": (random.getstate(), np.random.get_state()[1].tolist(), model.calls, run.global_step),  # type: ignore[index]
        "rows": [row for row in quiet if row[1]],
        "callback_metrics": {
            tag: float(value) for tag, value in run.callback_metrics.items() if "/" not in tag and "slope" not in tag
        },
        "loggers": len(run.loggers),
    }


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_is_the_same_bit_for_bit_with_and_without(accumulate: int) -> None:
    without = lively_run(accumulate_grad_batches=accumulate)
    each = Each(monitor := smooth_monitor())
    other = Each(activations := ActivationMonitor(1))
    run = lively_run(monitor, each, GradientMonitor(1), activations, other, accumulate_grad_batches=accumulate)
    assert len(each.records) == 12 // accumulate
    assert set(each.records[-1]) > {f"smoothness/{name}" for name in SMOOTHNESS} | {"ics_l2/01_net.4"}
    for key in ("state", "grads", "optimizer", "random"):
        assert len(run[key]) == len(without[key])
        assert all(torch.equal(a, b) for a, b in zip(run[key], without[key], strict=True)), key
    for key in ("others", "rows", "callback_metrics", "loggers"):
        assert run[key] == without[key], key
    assert [record["dead_samples/00_net.0"] for record in other.records[:2]] == [4 * accumulate, 8 * accumulate]


def test_the_repeated_step_is_the_real_one() -> None:
    """Same dropout mask, random numbers, batch and `global_step`: G is the gradient that the step used, bit for bit."""
    grads: list[dict[str, Tensor]] = []
    starts: list[dict[str, Tensor]] = []

    class Real(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            grads.append({name: p.grad.clone() for name, p in pl_module.named_parameters()})

    original = module_under_test.StepReplica.run

    def spied(self: Any, twin: Any) -> Any:
        found = original(self, twin)
        if len(starts) < len(grads):
            starts.append(found.grads)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_under_test.StepReplica, "run", spied)
        lively_run(smooth_monitor(), Real())
    assert len(starts) == len(grads) == 12
    for ours, real in zip(starts, grads, strict=True):
        assert all(torch.equal(ours[name], real[name]) for name in real)


def test_intervals_epochs_and_budget() -> None:
    run = trainer(smooth_monitor(3), log_every_n_steps=2, limit_train_batches=5, max_epochs=2)
    run.fit(Module(normalised()), loader(40))
    assert memory(run).steps("smoothness/loss_max") == [0, 3, 5, 6, 9]
    assert memory(run).steps("bn_drift/00_net.1") == [0, 2, 4, 5, 6, 8]
    assert memory(run).steps("smoothness_epoch/loss_max") == memory(run).steps("ics_l2_epoch/01_net.3") == [4, 9]
    tight = trainer(smooth_monitor(1, budget=1e-6), limit_train_batches=5, max_epochs=2)
    tight.fit(Module(normalised()), loader(40))
    assert memory(tight).steps("smoothness/loss_max") == memory(tight).steps("bn_drift/00_net.1") == [0, 5]


def test_without_batch_norm_only_smoothness_is_logged() -> None:
    run = trainer(monitor := smooth_monitor(2))
    run.fit(Module(mlp()), loader())
    assert {tag.partition("/")[0] for tag in monitor.latest} == {"smoothness", "ics_l2", "ics_cos"}
    assert memory(run).steps("smoothness/effective_beta") == [0, 2]


def test_the_filter_keeps_layers_out_but_not_the_loss() -> None:
    trainer(monitor := smooth_monitor(layers="net.3")).fit(Module(normalised()), loader())
    assert {tag.partition("/")[2] for tag in monitor.latest if tag.startswith("ics")} == {"01_net.3"}
    assert "smoothness/loss_range" in monitor.latest


def test_a_compiled_net_gives_the_same() -> None:
    records = []
    for compiled in (False, True):
        torch._dynamo.reset()
        net = normalised()
        each = Each(monitor := smooth_monitor())
        trainer(monitor, each).fit(
            Module(torch.compile(net, backend="eager") if compiled else net),  # type: ignore[arg-type]
            loader(),
        )
        records.append(each.records)
    for eager, other in zip(*records, strict=True):
        assert other == pytest.approx(eager, rel=1e-6)
    torch._dynamo.reset()


def test_a_compiled_lightning_module_runs_on_its_copy() -> None:
    """Lightning puts functions bound to the original into a compiled module, and a copy would run them on it."""
    states = []
    for callbacks in ([], [smooth_monitor()]):
        torch._dynamo.reset()
        model = Module(normalised())
        model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        trainer(*callbacks).fit(torch.compile(model, backend="eager"), loader())  # type: ignore[arg-type]
        states.append(model.state_dict())
    assert callbacks[0].latest["smoothness/effective_beta"] > 0
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same(reentrant: bool) -> None:
    class Checkpointed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            block = nn.Sequential(*list(self)[:6])
            out: Tensor = self[6](checkpoint(block, x.requires_grad_(), use_reentrant=reentrant))
            return out

    trainer(plain := smooth_monitor(), max_steps=1).fit(Module(normalised()), loader())
    trainer(monitor := smooth_monitor(), max_steps=1).fit(Module(Checkpointed(*normalised())), loader())
    assert only_smoothness(monitor.latest) == pytest.approx(only_smoothness(plain.latest), rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision: Any) -> None:
    trainer(plain := smooth_monitor(), max_steps=1).fit(Module(normalised()), loader())
    trainer(monitor := smooth_monitor(), max_steps=1, precision=precision).fit(Module(normalised()), loader())
    assert monitor.latest.keys() == plain.latest.keys()
    rel = 1e-4 if precision == "64-true" else 0.2
    for tag in ("smoothness/loss_max", "smoothness/gradient_predictiveness", "ics_l2/02_net.6"):
        assert monitor.latest[tag] == pytest.approx(plain.latest[tag], rel=rel)


def test_gradients_are_free_of_the_loss_scale() -> None:
    """A loss scaler multiplies the loss, and with it every gradient."""
    trainer(plain := smooth_monitor(), max_steps=1).fit(Module(mlp()), loader())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run = trainer(monitor := smooth_monitor(), max_steps=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    run.fit(Module(mlp()), loader())
    for tag in ("smoothness/gradient_predictiveness", "ics_l2/01_net.2", "smoothness/effective_beta"):
        assert monitor.latest[tag] == pytest.approx(plain.latest[tag], rel=0.05)
    assert scaler.get_scale() == 1024


def test_sparse_gradients_and_frozen_layers() -> None:
    class Bag(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc, self.frozen = nn.Embedding(10, 3, sparse=True), nn.Linear(3, 2), nn.Linear(2, 2)
            self.frozen.requires_grad_(False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.frozen(self.fc(self.table(torch.tensor([1, 1, 4])))).square().sum()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer(monitor := smooth_monitor(), max_steps=1).fit(Bag(), loader())
    names = {tag.partition("/")[2] for tag in monitor.latest if tag.startswith("ics")}
    assert names == {"00_table", "01_fc"}
    assert monitor.latest["smoothness/effective_beta"] > 0


def test_a_learning_rate_of_zero_has_no_beta_and_spoils_no_mean() -> None:
    run = trainer(monitor := smooth_monitor())
    run.fit(Module(mlp(), lambda p: torch.optim.SGD(p, lr=0.0)), loader())
    assert monitor.latest["smoothness/loss_range"] == monitor.latest["smoothness/gradient_predictiveness"] == 0
    assert np.isnan(monitor.latest["smoothness/effective_beta"])
    assert "smoothness_epoch/effective_beta" not in run.callback_metrics


def test_copies_are_freed() -> None:
    copies: list[weakref.ref[nn.Module]] = []
    original = module_under_test.StepReplica._copy

    def noted(self: Any, module: Any) -> Any:
        twin = original(self, module)
        copies.append(weakref.ref(next(twin.parameters())))  # type: ignore[arg-type]
        return twin

    alive: list[int] = []

    class Count(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            alive.append(sum(copy() is not None for copy in copies))

    gc.disable()  # at once, and not only when the collector runs
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module_under_test.StepReplica, "_copy", noted)
            trainer(smooth_monitor(), Count()).fit(Module(normalised()), loader())
    finally:
        gc.enable()
    assert alive == [0, 0, 0]
    assert len(copies) == 3 * (1 + 7)


def test_data_sets_that_the_module_holds_are_not_copied() -> None:
    class Rows(TensorDataset):
        def __deepcopy__(self, memo: Any) -> None:
            raise AssertionError("copied")

    class Holding(Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.sets = [Rows(*data())]

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(self.sets[0], batch_size=8)

    trainer(monitor := smooth_monitor()).fit(Holding(normalised()))
    assert monitor.latest["smoothness/effective_beta"] > 0


class Manual(Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()  # type: ignore[union-attr]
        self.manual_backward(loss)
        self.optimizers().step()  # type: ignore[union-attr]
        return loss


class Once(Module):
    """A training_step that a copy cannot repeat."""

    seen: int = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        type(self).seen += 1
        if type(self).seen == 2:
            raise RuntimeError("only once")
        return super().training_step(batch, batch_idx)


class Uncopyable(Module):
    """Holds what deepcopy refuses."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.files = (each for each in batch)
        return super().training_step(batch, batch_idx)


class Wrapped(Module):
    """A method that was replaced by a function bound to this very object."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.forward = lambda x: net(x)  # type: ignore[method-assign]


class Bound(Module):
    """A function that is bound to the original net, in a copy as well, for a part of the loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.again: Callable[[Tensor], Tensor] = lambda x: net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx) + self.again(batch[0]).square().mean()
        return loss


@pytest.mark.parametrize(
    ("kind", "reason", "records"),
    [
        (Manual, "no smoothness in this run: with manual optimization", 0),
        (Once, "goes on without smoothness.*RuntimeError: only once", 0),
        (Uncopyable, "goes on without smoothness.*cannot be copied.*TypeError", 1),
        (Wrapped, "goes on without smoothness.*forward of the module was replaced", 0),
        (Bound, "goes on without smoothness.*acts on the original", 0),
    ],
)
def test_what_cannot_be_measured_is_said_once_and_the_rest_is_recorded(kind: Any, reason: str, records: int) -> None:
    Once.seen = 0
    plain = kind(normalised())
    Once.seen = 3
    trainer().fit(plain, loader())
    Once.seen = 0
    model = kind(normalised())
    run = trainer(smooth_monitor())
    with pytest.warns(UserWarning, match=reason) as caught:
        run.fit(model, loader())
    assert len([each for each in caught if "BatchNormMonitor" in str(each.message)]) == 1
    assert memory(run).steps("bn_gamma_mean/00_net.1") == [0, 1, 2]
    assert len(memory(run).steps("smoothness/loss_min")) == records
    assert hooks_of(model) == []
    for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_without_batch_norm_and_smoothness_the_monitor_is_off() -> None:
    Once.seen = 0
    monitor, model = smooth_monitor(), Once(mlp())
    run = trainer(monitor)
    with pytest.warns(UserWarning, match=r"is off.*only once") as caught:
        run.fit(model, loader())
    assert len([each for each in caught if "BatchNormMonitor" in str(each.message)]) == 1
    assert not monitor.active
    assert run.global_step == 3
