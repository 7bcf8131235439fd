"""ActivationMonitor in real runs against outputs that a plain forward pass gives."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks import ActivationMonitor, GradientMonitor, TrainingDiagnosis
from bnlab_callbacks.recorders import activations as module_under_test
from bnlab_callbacks.statistics import activations as activation_statistics
from tests.callbacks.small_runs import Each, Functional, Module, data, hooks_of, loader, memory, mlp, trainer


def outputs_by_hand(steps: int, size: int, samples: int = 24) -> list[dict[str, Tensor]]:
    """Outputs of the ReLU (net.1) and the sigmoid (net.3) at each step of a plain float32 training loop."""
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = data(samples)
    seen = []
    for bx, by in list(zip(x.split(size), y.split(size), strict=True))[:steps]:
        relu = net[1](net[0](bx))
        sigmoid = net[3](net[2](relu))
        seen.append({"00_net.1": relu.detach(), "01_net.3": sigmoid.detach()})
        optimizer.zero_grad()
        F.mse_loss(net[4](sigmoid), by).backward()
        optimizer.step()
    return seen


def by_hand(outputs: dict[str, Tensor]) -> dict[str, float]:
    """The statistics of one record in float64, all but the dead units."""
    metrics: dict[str, float] = {}
    for name, output in outputs.items():
        a = output.double().numpy()
        metrics |= {f"act_mean/{name}": a.mean(), f"act_std/{name}": a.std(), f"act_absmax/{name}": np.abs(a).max()}
        metrics[f"act_outlier/{name}"] = np.abs(a).max() / np.sqrt((a**2).mean())
        metrics[f"act_kurtosis/{name}"] = ((a - a.mean()) ** 4).mean() / a.std() ** 4
        units = np.abs(a).mean(0)
        metrics[f"dormant_frac/{name}"] = (units <= 0.025 * units.mean()).mean()
    sigmoid = outputs["01_net.3"].double().numpy()
    u = 2 * sigmoid - 1
    metrics["sat_frac/01_net.3"] = (1 - u**2 < 0.05).mean()
    metrics["sat_lo/01_net.3"] = ((1 - u**2 < 0.05) & (u < 0)).mean()
    metrics["sat_hi/01_net.3"] = ((1 - u**2 < 0.05) & (u > 0)).mean()
    metrics["zero_frac/00_net.1"] = (outputs["00_net.1"].numpy() == 0).mean()
    return metrics


def without_dead(record: dict[str, float]) -> dict[str, float]:
    return {tag: value for tag, value in record.items() if not tag.startswith("dead")}


def test_every_record_equals_the_plain_loop() -> None:
    each = Each(monitor := ActivationMonitor(dead_window=2))
    run = trainer(monitor, each)
    run.fit(Module(mlp()), loader())
    by_step = outputs_by_hand(3, 8)
    assert len(each.records) == 3
    for record, outputs in zip(each.records, by_step, strict=True):
        assert without_dead(record) == pytest.approx(by_hand(outputs), rel=1e-5, abs=1e-9)
    relu = [outputs["00_net.1"] for outputs in by_step]
    for index, record in enumerate(each.records):
        window = torch.cat(relu[max(index - 1, 0) : index + 1])
        assert record["dead_frac/00_net.1"] == float((window.amax(0) <= 0).double().mean())
        assert record["dead_samples/00_net.1"] == len(window)
    epoch = memory(run).rows[-1][1]
    assert epoch["dead_frac_epoch/00_net.1"] == float((torch.cat(relu).amax(0) <= 0).double().mean())
    assert epoch["dead_samples_epoch/00_net.1"] == 24
    assert epoch["act_absmax_epoch/00_net.1"] == max(record["act_absmax/00_net.1"] for record in each.records)
    for tag in ("act_mean/00_net.1", "act_std/01_net.3", "sat_frac/01_net.3"):
        quantity, _, layer = tag.partition("/")
        mean = sum(record[tag] for record in each.records) / 3
        assert epoch[f"{quantity}_epoch/{layer}"] == pytest.approx(mean, rel=1e-12)
        assert run.callback_metrics[f"{quantity}_epoch/{layer}"] == pytest.approx(mean)


def test_a_silent_unit_and_a_saturated_one_are_found() -> None:
    net = mlp()
    with torch.no_grad():
        net[0].bias[2] = -1e3  # type: ignore[operator]
        net[2].bias[0] = 100.0  # type: ignore[operator]
        net[2].bias[1] = -100.0  # type: ignore[operator]
        net[2].weight.mul_(1e-3)  # type: ignore[operator]
    monitor = ActivationMonitor()
    trainer(monitor).fit(Module(net, lambda p: torch.optim.SGD(p, lr=0.0)), loader())
    assert monitor.latest["dead_frac/00_net.1"] == 1 / 5
    assert monitor.latest["sat_hi/01_net.3"] == monitor.latest["sat_lo/01_net.3"] == 1 / 4
    assert monitor.latest["sat_frac/01_net.3"] == 1 / 2


@pytest.mark.parametrize("accumulated", [1, 2])
def test_dormant_units_of_any_activation_are_in_the_ledger_and_dead_ones_are_listed_as_dead(accumulated: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        net[0].bias[2] = -1e3  # type: ignore[operator]
        net[2].weight[1] *= 1e-3  # type: ignore[operator]
        net[2].bias[1] = 0  # type: ignore[operator]
    monitor = ActivationMonitor(dead_window=2)
    run = trainer(monitor, accumulate_grad_batches=accumulated)
    run.fit(Module(net, lambda p: torch.optim.SGD(p, lr=0.0)), loader(batch_size=8 // accumulated))
    assert monitor.latest["dormant_frac/00_net.1"] == monitor.latest["dead_frac/00_net.1"] == 1 / 5
    assert monitor.latest["dormant_frac/01_net.3"] == run.callback_metrics["dormant_frac_epoch/01_net.3"] == 1 / 4
    assert [tuple(unit) for unit in monitor.ledger] == [
        ("00_net.1", 2, True, 0, 24, 0, False),
        ("01_net.3", 1, False, 0, 24, 0, True),
    ]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_effective_rank_on_request(accumulated: int) -> None:
    each = Each(monitor := ActivationMonitor(effective_rank=True))
    run = trainer(monitor, each, accumulate_grad_batches=accumulated)
    run.fit(Module(mlp()), loader(batch_size=8 // accumulated))
    for record, outputs in zip(each.records, outputs_by_hand(3, 8), strict=True):
        for name, output in outputs.items():
            ranks = []
            for part in output.double().chunk(accumulated):
                values = np.linalg.svd(part.numpy(), compute_uv=False)
                shares = values / values.sum()
                ranks.append(np.exp(-sum(p * np.log(p) for p in shares if p > 1e-9)))
            assert record[f"act_effective_rank/{name}"] == pytest.approx(np.mean(ranks), rel=1e-3)


def test_layers_of_zeros_have_no_outliers_and_dormant_units_only() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    nn.init.constant_(net[0].bias, -1e3)  # type: ignore[arg-type]
    monitor = ActivationMonitor()
    run = trainer(monitor)
    run.fit(Module(net, lambda p: torch.optim.SGD(p, lr=0.0)), loader())
    assert monitor.latest["dormant_frac/00_net.1"] == 1
    assert math.isnan(monitor.latest["act_outlier/00_net.1"])
    assert math.isnan(monitor.latest["act_kurtosis/00_net.1"])
    assert "act_outlier_epoch/00_net.1" not in run.callback_metrics


def test_accumulated_batches_are_one_record() -> None:
    each = Each(monitor := ActivationMonitor())
    run = trainer(monitor, each, accumulate_grad_batches=2)
    run.fit(Module(mlp()), loader(batch_size=4))
    assert memory(run).steps("act_mean/00_net.1") == [0, 1, 2]
    for record, outputs in zip(each.records, outputs_by_hand(3, 8), strict=True):
        assert without_dead(record) == pytest.approx(by_hand(outputs), rel=1e-5, abs=1e-9)
    assert [record["dead_samples/00_net.1"] for record in each.records] == [8, 16, 24]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_unit_that_fires_in_any_accumulated_batch_is_alive(order: tuple[int, int]) -> None:
    batches = torch.tensor([[1.0, 1, 1, -1, -1, -1], [-1, -1, -1, -1, -1, 1]])[list(order)]
    monitor = ActivationMonitor(dead_window=1)
    run = trainer(monitor, accumulate_grad_batches=2)
    run.fit(Module(nn.Sequential(nn.ReLU(), nn.Linear(6, 3))), DataLoader(TensorDataset(batches, torch.ones(2, 3))))
    assert monitor.latest["dead_frac/00_net.0"] == 2 / 6
    assert monitor.latest["dead_samples/00_net.0"] == 2


def test_only_due_steps_open_the_hooks() -> None:
    run = trainer(ActivationMonitor(2), limit_train_batches=5, max_epochs=2)
    model = Module(mlp())
    run.fit(model, loader(40))
    assert memory(run).steps("act_mean/00_net.1") == [0, 2, 4, 5, 6, 8]
    assert run.callback_metrics["dead_samples_epoch/00_net.1"] == 3 * 8


def test_a_compiled_net_counts_every_batch_and_has_clean_names() -> None:
    """Names must not show `_orig_mod`, nor may what hooks do be frozen at compilation."""
    torch._dynamo.reset()
    net = mlp()
    expected = [by_hand(outputs) for outputs in outputs_by_hand(3, 8)]
    each = Each(monitor := ActivationMonitor())
    run = trainer(monitor, each)
    run.fit(Module(torch.compile(net, backend="eager")), loader())  # type: ignore[arg-type]
    assert len(each.records) == 3
    for record, wanted in zip(each.records, expected, strict=True):
        assert without_dead(record) == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    assert monitor.latest["dead_samples/00_net.1"] == 24
    torch._dynamo.reset()


def test_a_compiled_modules_recorded_steps_are_right_beside_unrecorded_ones() -> None:
    """The gate is read at each call, not frozen at compilation."""
    torch._dynamo.reset()
    each = Each(monitor := ActivationMonitor(2))
    run = trainer(monitor, each)
    run.fit(Module(torch.compile(mlp(), backend="eager")), loader(40))  # type: ignore[arg-type]
    expected = outputs_by_hand(5, 8, 40)
    assert len(each.records) == 3
    for record, outputs in zip(each.records, expected[::2], strict=True):
        assert without_dead(record) == pytest.approx(by_hand(outputs), rel=1e-5, abs=1e-9)
    torch._dynamo.reset()


def test_sanity_and_validation_passes_do_not_count() -> None:
    """They run before and within the first epoch."""
    each = Each(monitor := ActivationMonitor())
    run = trainer(monitor, each, num_sanity_val_steps=2, val_check_interval=1)
    run.fit(Module(mlp()), loader(), loader(64))
    assert [record["dead_samples/00_net.1"] for record in each.records] == [8, 16, 24]
    for record, outputs in zip(each.records, outputs_by_hand(3, 8), strict=True):
        assert without_dead(record) == pytest.approx(by_hand(outputs), rel=1e-5, abs=1e-9)


def test_modules_in_eval_mode_do_not_count() -> None:
    class HalfFrozen(Module):
        def on_train_epoch_start(self) -> None:
            self.net[1].eval()  # type: ignore[index]

    monitor = ActivationMonitor()
    trainer(monitor).fit(HalfFrozen(mlp()), loader())
    assert {tag.partition("/")[2] for tag in monitor.latest} == {"00_net.3"}


def test_resnets_shared_in_place_relus_have_one_tag_per_call() -> None:
    """A module that is called several times is one layer a call, and each call overwrites its input."""

    class Resnet(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self(batch[0]).square().mean()
            return loss

    net = torchvision.models.resnet18(num_classes=3)
    reference = copy.deepcopy(net).train()
    seen: list[Tensor] = []
    for layer in reference.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    reference(data(2, (3, 32, 32))[0])
    monitor = ActivationMonitor(layers="layer1|^net.relu")
    trainer(monitor, max_steps=1).fit(Resnet(net), loader(2, 2, (3, 32, 32)))
    names = [tag.partition("/")[2] for tag in monitor.latest if tag.startswith("act_mean/")]
    assert names == [
        "00_net.relu",
        "01_net.layer1.0.relu",
        "02_net.layer1.0.relu.2",
        "03_net.layer1.1.relu",
        "04_net.layer1.1.relu.2",
    ]
    assert len(seen) == 17
    for name, output in zip(names, seen, strict=False):
        a = output.double().numpy()
        assert monitor.latest[f"act_mean/{name}"] == pytest.approx(a.mean(), rel=1e-5)
        assert monitor.latest[f"zero_frac/{name}"] == (a == 0).mean()
        assert monitor.latest[f"dead_frac/{name}"] == (a.max(axis=(0, 2, 3)) == 0).mean()


def test_functions_are_recorded_as_modules_are_and_training_is_the_same() -> None:
    """But not those of the loss, nor those that `training_step` calls."""
    finals = []
    each = Each(monitor := ActivationMonitor())
    for callbacks in ([], [monitor, each, GradientMonitor(1), TrainingDiagnosis(summary=False)]):
        model = Functional()
        torch.manual_seed(0)
        trainer(*callbacks).fit(model, loader())
        assert hooks_of(model) == []
        finals.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(finals[0].values(), finals[1].values(), strict=True))
    names = ["00_net.tanh", "01_net.relu", "02_sigmoid", "03_net.relu.2", "04_sigmoid.2"]
    net = Functional().net
    x = data()[0][:8]
    with torch.no_grad():
        cells: list[Tensor] = []
        for _ in range(12):
            cells.append(torch.tanh(net.cell(cells[-1] if cells else x)))
        relu = F.relu(cells[-1])
        outputs = {names[0]: torch.stack(cells), names[1]: relu, names[2]: net.out(relu).sigmoid()}
    outputs |= {names[3]: outputs[names[1]], names[4]: outputs[names[2]]}
    assert sorted({tag.partition("/")[2] for tag in each.records[0]}) == names
    for name, output in outputs.items():
        a = output.double()
        assert each.records[0][f"act_mean/{name}"] == pytest.approx(float(a.mean()), rel=1e-5)
        assert each.records[0][f"act_std/{name}"] == pytest.approx(float(a.std(correction=0)), rel=1e-5)
    assert each.records[0][f"dead_frac/{names[1]}"] == float((relu.amax(0) == 0).double().mean())


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.block = mlp()[:4]
        self.head = mlp()[4]
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(checkpoint(self.block, x.requires_grad_(), use_reentrant=self.reentrant))
        return out


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointings_repetitions_do_not_count(reentrant: bool) -> None:
    """The backward pass runs such a block's forward pass once more."""
    each = Each(monitor := ActivationMonitor())
    trainer(monitor, each, accumulate_grad_batches=2).fit(Module(Checkpointed(reentrant)), loader(batch_size=4))
    assert len(each.records) == 3
    for record, outputs in zip(each.records, outputs_by_hand(3, 8), strict=True):
        wanted = by_hand({name: outputs[name] for name in outputs})
        wanted = {tag.replace("_net.", "_net.block."): value for tag, value in wanted.items()}
        assert without_dead(record) == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    assert monitor.latest["dead_samples/00_net.block.1"] == 24


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_no_hook_is_left_and_a_second_fit_counts_once(error: type[BaseException]) -> None:
    """Lightning then calls `on_exception`, and no hook that ends a run in the usual way."""

    class Broken(Module):
        armed = True

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.armed and self.trainer.global_step == 1:
                raise error("broken")
            return super().training_step(batch, batch_idx)

    monitor, model = ActivationMonitor(), Broken(mlp())
    with pytest.raises((error, SystemExit)):
        trainer(monitor).fit(model, loader())
    assert hooks_of(model) == []
    model.armed = False
    run = trainer(monitor)
    run.fit(model, loader())
    assert hooks_of(model) == []
    assert memory(run).steps("act_mean/00_net.1") == [0, 1, 2]
    assert monitor.latest["dead_samples/00_net.1"] == 24
    assert {tag.partition("/")[2] for tag in monitor.latest} == {"00_net.1", "01_net.3"}


def test_copies_of_a_hooked_net_record_nothing() -> None:
    """An EMA's deepcopy, a pickled module."""
    duplicates: list[nn.Module] = []

    class Copied(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            duplicates[:] = [copy.deepcopy(self.net), pickle.loads(pickle.dumps(self.net))]
            for duplicate in duplicates:
                duplicate(batch[0])
            return super().training_step(batch, batch_idx)

    each = Each(monitor := ActivationMonitor())
    trainer(monitor, each).fit(Copied(mlp()), loader())
    assert [len([tag for tag in record if tag.startswith("act_mean")]) for record in each.records] == [2, 2, 2]
    assert [record["dead_samples/00_net.1"] for record in each.records] == [8, 16, 24]
    for duplicate in duplicates:
        duplicate(data()[0])


def test_seventy_thousand_half_precision_units_are_exact() -> None:
    """Float16 sums end at 65,504."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            ones = torch.ones(len(x), 70_000, dtype=torch.float16)
            ones[:, :7] = -1
            out: Tensor = self.fc(x) + self.act(ones).float().mean()
            return out

    monitor = ActivationMonitor()
    trainer(monitor, max_steps=1).fit(Module(Wide()), loader())
    assert monitor.latest["zero_frac/00_net.act"] == 7 / 70_000
    assert monitor.latest["dead_frac/00_net.act"] == 7 / 70_000
    assert monitor.latest["act_mean/00_net.act"] == pytest.approx(69_993 / 70_000, rel=1e-7)
    assert monitor.latest["act_absmax/00_net.act"] == 1


def test_mixed_precision_is_recorded_in_float32() -> None:
    each = Each(monitor := ActivationMonitor())
    trainer(monitor, each, precision="bf16-mixed").fit(Module(mlp()), loader())
    net = mlp()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        relu = net[:2](data()[0][:8])
        outputs = {"00_net.1": relu.float(), "01_net.3": net[2:4](relu).float()}
    assert without_dead(each.records[0]) == pytest.approx(by_hand(outputs), rel=1e-6)


def test_a_net_without_activations_gets_one_warning_and_trains_on() -> None:
    run = trainer(ActivationMonitor())
    with pytest.warns(UserWarning, match=r"recorded nothing: no activation function was called") as caught:
        run.fit(Module(nn.Linear(6, 3)), loader())
    assert len([each for each in caught if "ActivationMonitor" in str(each.message)]) == 1
    assert run.global_step == 3


def test_a_filter_without_a_match_names_what_there_is() -> None:
    with pytest.warns(UserWarning, match=r"matches layers='conv'; there are: net\.1, net\.3"):
        trainer(ActivationMonitor(layers="conv")).fit(Module(mlp()), loader())


def test_filtered_layers_keep_their_numbers() -> None:
    monitor = ActivationMonitor(layers=r"net\.3")
    trainer(monitor).fit(Module(mlp()), loader())
    assert {tag.partition("/")[2] for tag in monitor.latest} == {"01_net.3"}


@pytest.mark.parametrize(
    ("function", "where"), [("activation_sums", r"ArithmeticError at net\.\d"), ("_maxima_of_units", "ArithmeticError")]
)
def test_an_error_in_the_diagnostic_warns_once_and_changes_no_weight(
    function: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a hook, or when the outputs that were kept are looked at."""
    untouched = Module(mlp())
    trainer().fit(untouched, loader())

    def broken(*args: Any) -> None:
        raise ArithmeticError("boom")

    monkeypatch.setattr(activation_statistics, function, broken)
    if function == "activation_sums":
        monkeypatch.setattr(module_under_test, function, broken)
        monkeypatch.setattr(activation_statistics, "_SMALL", 0)
    model = Module(mlp())
    with pytest.warns(UserWarning, match=f"ActivationMonitor is off.*{where}: boom") as caught:
        trainer(ActivationMonitor()).fit(model, loader())
    assert len([each for each in caught if "is off" in str(each.message)]) == 1
    assert hooks_of(model) == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def test_small_layers_taken_together_equal_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way and the slow one; the third step's batch is smaller, so it cannot be taken with the others."""
    found = []
    for slow in (False, True):
        if slow:
            monkeypatch.setattr("bnlab_callbacks.recorders.activation_tables.same_blocks", lambda steps: None)
        each = Each(ActivationMonitor(1, dead_window=2))
        run = trainer(each.monitor, each, max_epochs=2)
        torch.manual_seed(0)
        layers = [nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 9), nn.Tanh(), nn.Linear(9, 5), nn.ELU(), nn.ReLU6()]
        run.fit(Module(nn.Sequential(*layers, nn.Linear(5, 3))), loader(22))
        epoch = {tag: float(value) for tag, value in run.callback_metrics.items() if "_epoch/" in tag}
        found.append((each.records, each.monitor.ledger, epoch))
    (fast, ledger, epoch), (slowly, slow_ledger, slow_epoch) = found
    assert len(fast) == len(slowly) == 6
    for one, other in zip(fast, slowly, strict=True):
        assert one == pytest.approx(other, rel=1e-12)
        assert {tag: one[tag] for tag in one if "_frac" in tag} == {tag: other[tag] for tag in one if "_frac" in tag}
    assert ledger == slow_ledger != []
    assert epoch == pytest.approx(slow_epoch, rel=1e-6) != {}


def test_outputs_that_are_no_dense_floats_are_passed_over() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.good = nn.ReLU(), nn.ReLU()
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.act(torch.arange(3))  # integers
            self.act(x[:0])  # nothing
            out: Tensor = self.fc(self.good(x))
            return out

    monitor = ActivationMonitor()
    trainer(monitor).fit(Module(Odd()), loader())
    assert {tag.partition("/")[2] for tag in monitor.latest} == {"00_net.good"}


def test_layers_are_numbered_by_execution_and_late_ones_go_on() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.second, self.first = nn.Tanh(), nn.Tanh(), nn.ReLU()
            self.fc = nn.Linear(6, 3)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(x))
            self.calls += 1
            out: Tensor = self.fc(x if self.calls == 1 else self.late(x))
            return out

    run = trainer(ActivationMonitor())
    run.fit(Module(Growing()), loader())
    tags = {tag for tag in memory(run).tags() if tag.startswith("act_mean/")}
    assert tags == {"act_mean/00_net.first", "act_mean/01_net.second", "act_mean/02_net.late"}


def test_a_diverged_net_is_a_result() -> None:
    class Nan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(6, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.act(self.fc(x) * math.nan)
            return out

    monitor = ActivationMonitor()
    run = trainer(monitor)
    run.fit(Module(Nan()), loader())
    assert math.isnan(monitor.latest["act_mean/00_net.act"])
    assert "act_mean_epoch/00_net.act" not in run.callback_metrics
    assert run.global_step == 3


def test_a_window_below_one_record_is_refused() -> None:
    with pytest.raises(ValueError, match="dead_window=0 is below 1"):
        ActivationMonitor(dead_window=0)
