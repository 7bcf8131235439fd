"""GradientMonitor in real runs against gradients computed by hand."""

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor
from bnlab_callbacks.core.weights import find_weights
from tests.callbacks.small_runs import Each, Module, data, hooks_of, loader, memory, mlp, trainer

LAYERS = {"00_net.0": "0.weight", "01_net.2": "2.weight", "02_net.4": "4.weight"}
QUANTITIES = ("grad_mean_abs", "grad_mean", "grad_rms", "grad_zero_frac", "grad_nonfinite", "update_ratio")


def by_hand(g: Tensor, before: Tensor, after: Tensor) -> dict[str, float]:
    """All quantities in float64 NumPy."""
    grad, w, v = (each.detach().double().numpy().ravel() for each in (g, before, after))
    return {
        "grad_mean_abs": np.abs(grad).mean(),
        "grad_mean": grad.mean(),
        "grad_rms": np.sqrt((grad**2).mean()),
        "grad_zero_frac": (grad == 0).mean(),
        "grad_nonfinite": float((~np.isfinite(grad)).sum()),
        "update_ratio": np.log10(np.linalg.norm(v - w) / np.linalg.norm(w)),
    }


def plain_run(
    windows: list[tuple[Tensor, Tensor]], lr: float = 0.1, clip: float | None = None
) -> list[dict[str, float]]:
    """The same training by a plain loop in float64, each window as one batch; a record per optimizer step."""
    net = mlp().double()
    records = []
    for x, y in windows:
        net.zero_grad()
        F.mse_loss(net(x.double()), y.double()).backward()
        grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        with torch.no_grad():
            for p in net.parameters():
                assert p.grad is not None
                p -= lr * p.grad
        now = dict(net.named_parameters())
        layers = {layer: by_hand(grads[name], before[name], now[name]) for layer, name in LAYERS.items()}
        record = {f"{quantity}/{layer}": value for layer, row in layers.items() for quantity, value in row.items()}
        slope, _ = np.polyfit(range(len(layers)), [np.log10(row["grad_rms"]) for row in layers.values()], 1)
        records.append(record | {"grad_depth_slope": slope})
    return records


def windows(size: int, samples: int = 24) -> list[tuple[Tensor, Tensor]]:
    x, y = data(samples)
    return list(zip(x.split(size), y.split(size), strict=True))


def approximately(expected: dict[str, float], rel: float = 2e-5) -> Any:
    return pytest.approx(expected, rel=rel, abs=1e-8)


def test_every_step_equals_the_plain_loop() -> None:
    monitor = GradientMonitor()
    run = trainer(monitor)
    run.fit(Module(mlp()), loader())
    rows = [row for row in memory(run).rows if "grad_rms/00_net.0" in row[1]]
    assert [step for step, _ in rows] == [0, 1, 2]
    for (_, metrics), expected in zip(rows, plain_run(windows(8)), strict=True):
        assert metrics == approximately(expected)


def test_clipping_and_accumulation_leave_the_full_windows_unclipped_gradient() -> None:
    """The gradient of one batch of several, or a clipped one, is not the step's."""
    monitor = GradientMonitor()
    each = Each(monitor)
    run = trainer(monitor, each, gradient_clip_val=0.05, accumulate_grad_batches=2)
    run.fit(Module(mlp()), loader(batch_size=4))
    expected = plain_run(windows(8), clip=0.05)
    assert len(each.records) == 3 == run.global_step
    for actual, wanted in zip(each.records, expected, strict=True):
        assert actual == approximately(wanted)
    unclipped = plain_run(windows(8))
    assert expected[0]["update_ratio/00_net.0"] < unclipped[0]["update_ratio/00_net.0"]  # the clip does bite


def test_an_incomplete_last_window_is_recorded_too() -> None:
    each = Each(monitor := GradientMonitor())
    run = trainer(monitor, each, accumulate_grad_batches=2)
    run.fit(Module(mlp()), loader(20, batch_size=4))
    assert len(each.records) == 3 == run.global_step


def mixed_precision_run(
    optimizer: Any, scale: float, fused: bool, steps: int = 3
) -> tuple[Any, list[dict[str, float]]]:
    monitor = GradientMonitor()
    each = Each(monitor)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)  # type: ignore[attr-defined]
    run = trainer(monitor, each, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    run.fit(Module(mlp(), lambda p: optimizer(p, lr=0.01, fused=fused)), loader(8 * steps))
    assert scaler.get_scale() > 0
    return run, each.records


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_fused_optimizers_gradients_are_unscaled(optimizer: Any) -> None:
    """A fused optimizer unscales within its step."""
    fused, unfused = (mixed_precision_run(optimizer, 1024.0, each)[1] for each in (True, False))
    monitor = GradientMonitor()
    single = Each(monitor)
    trainer(monitor, single).fit(Module(mlp(), lambda p: optimizer(p, lr=0.01)), loader())
    assert len(fused) == len(unfused) == len(single.records) == 3
    for a, b, c in zip(fused, unfused, single.records, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-7)
        for tag, value in c.items():
            magnitude = abs(c.get("grad_mean_abs/" + tag.partition("/")[2], 1.0))
            assert a[tag] == pytest.approx(value, rel=2e-2, abs=1e-2 * magnitude), tag


@pytest.mark.parametrize("fused", [True, False])
def test_overflows_of_the_loss_scaler_are_counted_and_left_out_of_the_means(fused: bool) -> None:
    """The scaler skips these steps."""
    run, records = mixed_precision_run(torch.optim.SGD, 2.0**40, fused)
    assert len(records) == 3
    epoch = memory(run).rows[-1][1]
    for layer in LAYERS:
        assert f"grad_rms_epoch/{layer}" not in epoch
        assert epoch[f"grad_nonfinite_steps_epoch/{layer}"] == 3
        assert [record[f"update_ratio/{layer}"] for record in records] == [-math.inf] * 3  # the scaler skipped them


def test_an_epochs_mean_is_that_of_its_finite_records() -> None:
    run, records = mixed_precision_run(torch.optim.SGD, 2.0**22, False, steps=12)
    epoch = next(metrics for _, metrics in memory(run).rows if "grad_rms_epoch/02_net.4" in metrics)
    for layer in LAYERS:
        values = [record[f"grad_rms/{layer}"] for record in records]
        finite = [value for value in values if math.isfinite(value)]
        assert 0 < len(finite) < 12
        assert epoch[f"grad_nonfinite_steps_epoch/{layer}"] == 12 - len(finite)
        assert epoch[f"grad_rms_epoch/{layer}"] == pytest.approx(sum(finite) / len(finite))
        assert run.callback_metrics[f"grad_rms_epoch/{layer}"] == pytest.approx(sum(finite) / len(finite))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_other_precisions_of_the_weights_are_recorded(precision: Any) -> None:
    each = Each(monitor := GradientMonitor())
    trainer(monitor, each, precision=precision).fit(Module(mlp()), loader())
    for actual, expected in zip(each.records, plain_run(windows(8)), strict=True):
        assert actual.keys() == expected.keys()
        for tag in expected:
            if tag.startswith(("grad_rms", "grad_mean_abs")):
                assert actual[tag] == pytest.approx(
                    expected[tag], rel={"bf16-true": 1e-1, "16-true": 2e-2, "64-true": 1e-5}[precision]
                )


class Partial(nn.Module):
    """A frozen layer, one that gets no gradient, and layers with biases and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv1d(1, 2, 3).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.conv = nn.Conv1d(2, 2, 3)
        self.norm = nn.BatchNorm1d(2)
        self.fc = nn.Linear(4, 3)
        self.layer_norm = nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer_norm(self.fc(self.norm(self.conv(self.frozen(x.unsqueeze(1)))).flatten(1)))
        return out


def test_no_tags_for_frozen_and_unused_layers_biases_and_norms() -> None:
    """They have no gradient, or none that is a weight matrix's."""
    monitor = GradientMonitor()
    net = Partial()
    net.fc = nn.Linear(4, 3)
    run = trainer(monitor)
    run.fit(Module(net), loader())
    layers = {tag.partition("/")[2] for tag in monitor.latest}
    assert layers == {"00_net.conv", "01_net.fc", ""}
    assert {tag.partition("/")[0] for tag in monitor.latest} == {*QUANTITIES, "grad_depth_slope"}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 6)
        self.decode = nn.Linear(6, 6)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.decode(self.encode(x)))
        return out


def test_a_tied_weight_is_one_layer() -> None:
    monitor = GradientMonitor(update_ratio=False)
    trainer(monitor).fit(Module(Tied()), loader())
    assert {tag for tag in monitor.latest if "rms" in tag} == {"grad_rms/00_net.encode", "grad_rms/01_net.head"}
    assert not any("update_ratio" in tag for tag in monitor.latest)


def test_layers_are_named_after_modules_or_parameters() -> None:
    net = nn.ModuleDict({"fc": nn.Linear(2, 2), "rnn": nn.LSTM(2, 2), "att": nn.MultiheadAttention(2, 1)})
    net.register_parameter("table", nn.Parameter(torch.ones(2, 2)))
    net["lazy"] = nn.LazyLinear(3)
    assert [weight.layer for weight in find_weights(net)] == [
        "table",
        "fc",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "att.in_proj_weight",
        "att.out_proj",
    ]


class Gan(pl.LightningModule):
    """Two optimizers, manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Linear(6, 6)
        self.critic = nn.Linear(6, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            optimizer.zero_grad()
            loss = sign * self.critic(self.generator(x)).square().mean()
            self.manual_backward(loss)
            optimizer.step()
        self.log("loss", loss)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.generator, self.critic)]


def test_two_optimizers_record_each_layer_once_per_step_on_the_losses_axis() -> None:
    """`trainer.global_step` counts each optimizer apart."""
    model = Gan()
    run = trainer(GradientMonitor())
    run.fit(model, loader())
    assert run.global_step == 6
    log = memory(run)
    assert {tag for tag in log.tags() if "rms/" in tag} == {"grad_rms/00_generator", "grad_rms/01_critic"}
    for layer in ("00_generator", "01_critic"):
        assert log.steps(f"grad_rms/{layer}") == log.steps("loss") == [0, 1, 2]
        assert all(value < 0 and math.isfinite(value) for _, value in log.series(f"update_ratio/{layer}"))


def test_two_optimizers_gradients_are_those_of_their_own_steps() -> None:
    model = Gan()
    generator, critic = (nn.Linear(6, 6), nn.Linear(6, 1))
    generator.load_state_dict(model.generator.state_dict())
    critic.load_state_dict(model.critic.state_dict())
    monitor = GradientMonitor(update_ratio=False)
    trainer(monitor, max_steps=2).fit(model, loader())
    x = data()[0][:8]
    critic(generator(x)).square().mean().backward()
    assert generator.weight.grad is not None
    assert monitor.latest["grad_rms/00_generator"] == pytest.approx(float(generator.weight.grad.square().mean().sqrt()))
    with torch.no_grad():
        for p in generator.parameters():
            assert p.grad is not None
            p -= 0.01 * p.grad
    critic.zero_grad()
    (-critic(generator(x)).square().mean()).backward()
    assert critic.weight.grad is not None
    assert monitor.latest["grad_mean/01_critic"] == pytest.approx(float(critic.weight.grad.mean()), rel=1e-5)


def test_the_filter_keeps_layers_and_their_numbers() -> None:
    monitor = GradientMonitor(layers=r"net\.[24]$")
    trainer(monitor).fit(Module(mlp()), loader())
    assert {tag.partition("/")[2] for tag in monitor.latest} == {"01_net.2", "02_net.4", ""}


def test_a_filter_without_a_match_says_what_there_is_and_training_goes_on() -> None:
    run = trainer(GradientMonitor(layers="conv"))
    with pytest.warns(UserWarning, match=r"layers='conv'; there are: net\.0, net\.2, net\.4"):
        run.fit(Module(mlp()), loader())
    assert run.global_step == 3


def test_tiny_epochs_record_their_first_steps() -> None:
    """The run's first step and one step of every epoch, at the default interval of 50 steps."""
    run = trainer(GradientMonitor(), log_every_n_steps=50, max_epochs=3)
    run.fit(Module(mlp()), loader())
    assert memory(run).steps("grad_rms/00_net.0") == [0, 3, 6]
    assert memory(run).steps("grad_rms_epoch/00_net.0") == [2, 5, 8]


@pytest.mark.parametrize(("own", "trainers", "steps"), [(None, 2, [0, 2, 4, 5, 6]), (4, 2, [0, 4, 5])])
def test_the_interval_is_the_trainers_unless_given(own: int | None, trainers: int, steps: list[int]) -> None:
    run = trainer(GradientMonitor(own), log_every_n_steps=trainers, max_epochs=2, limit_train_batches=5, max_steps=8)
    run.fit(Module(mlp()), loader(80))
    assert memory(run).steps("grad_rms/00_net.0") == steps


def test_the_step_axis_is_that_of_the_logged_losses() -> None:
    """`trainer.global_step` is another axis than that of `self.log`."""
    run = trainer(GradientMonitor(), accumulate_grad_batches=2, max_epochs=2)
    model = Module(mlp())
    run.fit(model, loader(batch_size=4), loader(8))
    log = memory(run)
    assert log.steps("grad_rms/00_net.0") == sorted(set(log.steps("train_loss"))) == list(range(6))  # type: ignore[type-var]
    assert log.steps("grad_rms_epoch/00_net.0") == log.steps("val_loss") == [2, 5]


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
@pytest.mark.parametrize("kind", [GradientMonitor, ActivationMonitor])
def test_sharding_strategies_are_refused_by_name(name: str, kind: Callable[[], Any]) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    strategy = type(name, (SingleDeviceStrategy,), {"strategy_name": "fake"})(torch.device("cpu"))
    run = trainer(kind(), strategy=strategy)
    with pytest.warns(UserWarning, match=f"off for the rest of this run: {name} keeps only a part.*ddp"):
        run.fit(Module(mlp()), loader())
    assert run.global_step == 3
    assert memory(run).tags() <= {"train_loss", "epoch"}


def test_switched_off_it_does_nothing() -> None:
    monitor = GradientMonitor(enabled=False)
    run = trainer(monitor)
    run.fit(Module(mlp()), loader())
    assert monitor.latest == {}
    assert memory(run).tags() <= {"train_loss", "epoch"}


def test_all_callbacks_leave_the_final_weights_bit_for_bit() -> None:
    """Dropout included: torch's random state is not touched."""
    finals, states = [], []
    for callbacks in ([], [GradientMonitor(1), ActivationMonitor(1), EpochTimer()]):
        torch.manual_seed(5)
        model = Module(mlp(nn.Dropout(0.5)), lambda p: torch.optim.Adam(p, lr=0.01))
        trainer(*callbacks, max_epochs=3, accumulate_grad_batches=2).fit(model, loader(batch_size=4), loader(8))
        finals.append(model.state_dict())
        states.append(torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(finals[0].values(), finals[1].values(), strict=True))
    assert torch.equal(*states)


def test_sparse_embedding_gradients_are_recorded() -> None:
    class Bag(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 3, sparse=True)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.table(torch.tensor([1, 1, 4])).square().sum()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Bag()
    before = model.table.weight.detach().clone()
    monitor = GradientMonitor()
    trainer(monitor, max_steps=1).fit(model, loader())
    grad = torch.zeros(10, 3)
    grad[1], grad[4] = 4 * before[1], 2 * before[4]
    wanted = by_hand(grad, before, model.table.weight)
    assert monitor.latest == approximately({f"{quantity}/00_table": value for quantity, value in wanted.items()})


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_nothing_hangs_on_the_model_and_a_second_fit_records_all(error: type[BaseException]) -> None:
    """Lightning then calls `on_exception`, and no hook that ends a run in the usual way."""

    class Broken(Module):
        armed = True

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.armed and self.trainer.global_step == 1:
                raise error("broken")
            return super().training_step(batch, batch_idx)

    monitor, model = GradientMonitor(), Broken(mlp())
    with pytest.raises((error, SystemExit)):
        trainer(monitor).fit(model, loader())
    assert hooks_of(model) == []
    assert monitor._recorder is None
    model.armed = False
    run = trainer(monitor)
    run.fit(model, loader())
    assert memory(run).steps("grad_rms/00_net.0") == [0, 1, 2]
    assert hooks_of(model) == []


def test_an_error_in_the_diagnostic_warns_once_and_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = Module(mlp())
    trainer().fit(untouched, loader())
    calls = itertools.count()

    def broken(*args: Any) -> None:
        next(calls)
        raise ArithmeticError("boom")

    monkeypatch.setattr("bnlab_callbacks.statistics.packed_layers.PackedLayers.sums", broken)
    model = Module(mlp())
    with pytest.warns(UserWarning, match="GradientMonitor is off.*ArithmeticError: boom") as caught:
        trainer(GradientMonitor()).fit(model, loader())
    assert len([each for each in caught if "is off" in str(each.message)]) == 1
    assert next(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def test_small_layers_taken_together_equal_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way and the slow one; in the second run no layer counts as small."""
    found = []
    for slow in (False, True):
        if slow:
            monkeypatch.setattr("bnlab_callbacks.recorders.gradients.can_pack", lambda tensor: False)
        each = Each(GradientMonitor(1))
        run = trainer(each.monitor, each, max_epochs=2)
        torch.manual_seed(0)
        run.fit(Module(nn.Sequential(nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 20), nn.Linear(20, 3))), loader())
        found.append(each.records)
    assert len(found[0]) == len(found[1]) == 6
    for fast, slowly in zip(*found, strict=True):
        for tag, value in slowly.items():
            if tag.startswith("grad_mean/"):  # terms cancel
                assert abs(fast[tag] - value) < 1e-6 * slowly[tag.replace("grad_mean", "grad_mean_abs")]
            else:
                assert fast[tag] == pytest.approx(value, rel=2e-6), tag


class Slow(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)


def test_a_record_waits_for_others_but_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append((trainer.global_step, len(memory(trainer).steps("grad_rms/00_net.0"))))

    monkeypatch.setattr("bnlab_callbacks.core.lightning.publisher.SECONDS", 0.05)
    run = trainer(GradientMonitor(1000), Watch(), max_epochs=2)  # one record an epoch
    run.fit(Slow(mlp()), loader(80, batch_size=8))
    published = next(step for step, records in seen if records)
    assert 2 <= published <= 5
    assert seen[-1] == (20, 2)


class StepsAgain(Module):
    """Makes several optimizer steps on one batch."""

    def __init__(self, steps: int) -> None:
        super().__init__(nn.Linear(6, 3))
        self.automatic_optimization = False
        self.steps = steps
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        for _ in range(self.steps):
            optimizer.zero_grad()
            self.manual_backward(F.mse_loss(self(batch[0]), batch[1]))
            optimizer.step()


def test_of_several_steps_on_one_batch_the_first_ones_update_is_measured() -> None:
    ratios = []
    for steps in (1, 2, 5):
        run = trainer(GradientMonitor())
        run.fit(StepsAgain(steps), loader(8))
        ratios += [value for _, value in memory(run).series("update_ratio/00_net")]
    assert ratios == [ratios[0]] * 3
    assert -3 < ratios[0] < 0
