"""BatchNormMonitor in real runs against statistics computed by hand; the smoothness has its own tests."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bnlab_callbacks.batch_norm_monitor import BatchNormMonitor
from bnlab_callbacks.statistics.batch_norm import affine_statistics, running_gap
from tests.callbacks.small_runs import Each, Module, data, hooks_of, loader, memory, mlp, trainer

Run = list[dict[str, float]]


def normalised(**options: Any) -> nn.Sequential:
    """6 → 5 → 4 → 3 units with two batch norms, always the same weights; γ and β are not 1 and 0."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            *(nn.Linear(6, 5), nn.BatchNorm1d(5, **options), nn.ReLU()),
            *(nn.Linear(5, 4), nn.BatchNorm1d(4, **options), nn.Sigmoid(), nn.Linear(4, 3)),
        )
        for layer in net:
            if isinstance(layer, nn.BatchNorm1d) and layer.affine:
                nn.init.normal_(layer.weight, 0.5, 0.5)
                nn.init.normal_(layer.bias)
        return net


def by_hand(x: Tensor, norm: Any) -> dict[str, float]:
    """All quantities of one layer in float64 NumPy, `norm` as it stands before it sees `x` (N, C, …)."""
    values = np.moveaxis(x.detach().double().numpy(), 1, -1).reshape(-1, x.shape[1])
    mean, biased, unbiased = values.mean(0), values.var(0), values.var(0, ddof=1)
    found: dict[str, float] = {}
    if norm.track_running_stats:
        run, spread = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
        found["bn_drift"] = (np.abs(run - mean) / np.sqrt(biased + norm.eps)).mean()
        found["bn_logvar"] = np.abs(np.log((spread + norm.eps) / (unbiased + norm.eps))).mean()
    if norm.affine:
        gamma = norm.weight.detach().double().numpy()
        found["bn_gamma_mean"] = gamma.mean()
        found["bn_gamma_absmin"] = np.abs(gamma).min()
        found["bn_gamma_small_frac"] = (np.abs(gamma) < 0.05).mean()
        found["bn_beta_mean"] = norm.bias.detach().double().numpy().mean()
    return found


def plain_run(net: nn.Sequential, samples: int = 24, size: int = 8, accumulate: int = 1, steps: int = 3) -> Run:
    """The values at each step of a plain training loop, averaged over accumulated batches."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = data(samples)
    batches = iter(zip(torch.split(x, size), torch.split(y, size), strict=True))
    records: Run = []
    for _ in range(steps):
        found: list[dict[str, float]] = []
        optimizer.zero_grad()
        for _ in range(accumulate):
            out, target = next(batches)
            one: dict[str, float] = {}
            for index, layer in enumerate(net):
                if isinstance(layer, nn.BatchNorm1d):
                    name = f"{0 if index == 1 else 1:02d}_net.{index}"
                    one |= {f"{quantity}/{name}": value for quantity, value in by_hand(out, layer).items()}
                out = layer(out)
            found.append(one)
            (F.mse_loss(out, target) / accumulate).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        records.append({tag: sum(one[tag] for one in found) / accumulate for tag in found[0]})
    return records


def assert_close(actual: Run, expected: Run) -> None:
    assert len(actual) == len(expected)
    for record, wanted in zip(actual, expected, strict=True):
        assert record == pytest.approx(wanted, rel=2e-5, abs=1e-7)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.5, "momentum": 0.7}],
)
def test_every_step_equals_the_plain_loop(options: dict[str, Any]) -> None:
    """Running statistics as they stood before the step's forward pass, γ and β before its update."""
    each = Each(monitor := BatchNormMonitor())
    run = trainer(monitor, each)
    run.fit(Module(normalised(**options)), loader())
    expected = plain_run(normalised(**options))
    assert_close(each.records, expected)
    for tag in expected[0]:
        assert memory(run).series(tag) == [(step, record[tag]) for step, record in enumerate(each.records)]


def test_layers_without_running_statistics_or_without_scale_have_no_such_tags() -> None:
    trainer(untracked := BatchNormMonitor()).fit(Module(normalised(track_running_stats=False)), loader())
    assert untracked.latest
    assert not any(tag.startswith(("bn_drift", "bn_logvar")) for tag in untracked.latest)
    trainer(fixed := BatchNormMonitor()).fit(Module(normalised(affine=False)), loader())
    assert {tag.partition("/")[0] for tag in fixed.latest} == {"bn_drift", "bn_logvar"}


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (4, 3, 5, 6), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_gap_is_numpys(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    norm = nn.BatchNorm1d(3)
    norm.running_mean, norm.running_var = torch.tensor([0.0, -1.0, 2.0]), torch.tensor([1.0, 0.5, 4.0])
    x = (torch.randn(shape) * 3 + 2).to(dtype)
    gap = running_gap(x, norm.running_mean, norm.running_var, norm.eps)
    wanted = by_hand(x, norm)
    assert {name: float(value) for name, value in gap.items()} == pytest.approx(
        {name: wanted[name] for name in gap}, rel=1e-5
    )


def test_channels_last_images_give_the_same_gap() -> None:
    x = torch.randn(4, 3, 5, 6)
    mean, variance = torch.zeros(3), torch.ones(3)
    usual = running_gap(x, mean, variance, 1e-5)
    other = running_gap(x.contiguous(memory_format=torch.channels_last), mean, variance, 1e-5)
    assert {k: float(v) for k, v in usual.items()} == pytest.approx({k: float(v) for k, v in other.items()}, rel=1e-5)


def test_a_hundred_thousand_half_precision_values_are_summed_in_float32() -> None:
    """Float16 sums end at 65,504."""
    x = torch.ones(100_000, 1, dtype=torch.float16)
    x[::2] = 3
    gap = running_gap(x, torch.zeros(1), torch.ones(1), 0.0)
    assert float(gap["bn_drift"]) == pytest.approx(2, rel=1e-6)
    assert float(gap["bn_logvar"]) == pytest.approx(1e-5, abs=1e-6)  # n / (n − 1)


def test_a_constant_channel_divides_by_epsilon_and_not_by_zero() -> None:
    gap = running_gap(torch.full((8, 1), 2.0), torch.zeros(1), torch.ones(1), 0.01)
    assert float(gap["bn_drift"]) == pytest.approx(2 / 0.1)
    assert float(gap["bn_logvar"]) == pytest.approx(math.log(1.01 / 0.01))


def test_small_scales_are_counted_by_magnitude() -> None:
    values = affine_statistics(torch.tensor([0.05, -0.049, 0.0, -1.0]), None)
    assert {name: float(value) for name, value in values.items()} == {
        "bn_gamma_mean": pytest.approx(-0.24975),
        "bn_gamma_absmin": 0,
        "bn_gamma_small_frac": 0.5,
    }
    assert affine_statistics(None, None) == {}


class Images(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self(batch[0]).square().mean()
        return loss


def test_layers_are_numbered_in_execution_order_and_images_have_channels() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.early = nn.BatchNorm2d(2), nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.late(self.conv(self.early(x)))
            return out

    net = Net()
    first = by_hand(data(4, (3, 6, 6))[0], copy.deepcopy(net.early))
    monitor = BatchNormMonitor()
    trainer(monitor, max_steps=1).fit(Images(net), loader(4, 4, (3, 6, 6)))
    assert {tag.partition("/")[2] for tag in monitor.latest} == {"00_net.early", "01_net.late"}
    early = {tag.partition("/")[0]: v for tag, v in monitor.latest.items() if tag.endswith("early")}
    assert early == pytest.approx(first, rel=1e-5)


def test_a_module_used_twice_has_a_tag_per_call_for_what_depends_on_the_batch() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.norm(input=self.norm(x) * 2 + 1))
            return out

    net = Twice()
    reference = copy.deepcopy(net.norm)
    x = data()[0][:8]
    wanted = {f"{quantity}/00_net.norm": value for quantity, value in by_hand(x, reference).items()}
    x = reference(x) * 2 + 1
    for quantity in ("bn_drift", "bn_logvar"):
        wanted[f"{quantity}/01_net.norm.2"] = by_hand(x, reference)[quantity]
    monitor = BatchNormMonitor()
    trainer(monitor, max_steps=1).fit(Module(net), loader())
    assert monitor.latest == pytest.approx(wanted, rel=1e-5)


def test_accumulated_batches_are_averaged() -> None:
    each = Each(monitor := BatchNormMonitor())
    run = trainer(monitor, each, accumulate_grad_batches=2)
    run.fit(Module(normalised()), loader(batch_size=4))
    assert memory(run).steps("bn_drift/00_net.1") == [0, 1, 2]
    assert_close(each.records, plain_run(normalised(), size=4, accumulate=2))


def test_epochs_have_means_and_steps_stand_on_the_losses_axis() -> None:
    """`trainer.global_step` is another axis than that of `self.log`."""
    each = Each(monitor := BatchNormMonitor(2))
    run = trainer(monitor, each, limit_train_batches=5, max_epochs=2)
    run.fit(Module(normalised()), loader(40))
    assert memory(run).steps("bn_logvar/01_net.4") == [0, 2, 4, 5, 6, 8]
    assert memory(run).steps("bn_logvar_epoch/01_net.4") == [4, 9]
    last = [record["bn_logvar/01_net.4"] for record in each.records[3:]]
    assert float(run.callback_metrics["bn_logvar_epoch/01_net.4"]) == pytest.approx(sum(last) / 3)


def test_sanity_and_validation_passes_do_not_count() -> None:
    """They run before and within the first epoch."""
    each = Each(monitor := BatchNormMonitor())
    run = trainer(monitor, each, num_sanity_val_steps=2, val_check_interval=1)
    run.fit(Module(normalised()), loader(), loader(64))
    assert_close(each.records, plain_run(normalised()))


def test_frozen_layers_do_not_count() -> None:
    class Frozen(Module):
        def on_train_epoch_start(self) -> None:
            self.net[1].eval()  # type: ignore[index]

    monitor = BatchNormMonitor()
    trainer(monitor).fit(Frozen(normalised()), loader())
    assert {tag.partition("/")[2] for tag in monitor.latest} == {"00_net.4"}


class Checkpointed(nn.Module):
    def __init__(self, net: nn.Sequential, reentrant: bool) -> None:
        super().__init__()
        self.block, self.head = net[:6], net[6]
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(checkpoint(self.block, x.requires_grad_(), use_reentrant=self.reentrant))
        return out


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointings_repetitions_do_not_count(reentrant: bool) -> None:
    """The repetition moves the running statistics once more, so only the first step is the plain loop's."""
    each = Each(monitor := BatchNormMonitor())
    trainer(monitor, each).fit(Module(Checkpointed(normalised(), reentrant)), loader())
    wanted = {tag.replace("_net.", "_net.block."): value for tag, value in plain_run(normalised(), steps=1)[0].items()}
    assert each.records[0] == pytest.approx(wanted, rel=1e-5)
    assert [record.keys() for record in each.records] == [wanted.keys()] * 3


@pytest.mark.parametrize("every", [1, 2])
def test_a_compiled_net_records_the_same_under_clean_names(every: int) -> None:
    """Names must not show `_orig_mod`, nor may what hooks do be frozen at compilation."""
    torch._dynamo.reset()
    each = Each(monitor := BatchNormMonitor(every))
    compiled = torch.compile(normalised(), backend="eager")
    trainer(monitor, each).fit(Module(compiled), loader())  # type: ignore[arg-type]
    assert_close(each.records, plain_run(normalised())[::every])
    torch._dynamo.reset()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_no_hook_is_left_and_a_second_fit_counts_once(error: type[BaseException]) -> None:
    """Lightning then calls `on_exception`, and no hook that ends a run in the usual way."""

    class Broken(Module):
        armed = True

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.armed and self.trainer.global_step == 1:
                raise error("broken")
            return super().training_step(batch, batch_idx)

    monitor, model = BatchNormMonitor(smoothness_every_n_steps=1), Broken(normalised())
    with pytest.raises((error, SystemExit)):
        trainer(monitor).fit(model, loader())
    assert hooks_of(model) == []
    model.armed = False
    run = trainer(monitor)
    run.fit(model, loader())
    assert hooks_of(model) == []
    assert memory(run).steps("bn_drift/00_net.1") == [0, 1, 2]
    assert not any("#" in tag for tag in monitor.latest)


def test_copies_of_a_hooked_net_record_nothing() -> None:
    class Copied(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            for duplicate in (copy.deepcopy(self.net), pickle.loads(pickle.dumps(self.net))):
                duplicate(batch[0])
            return super().training_step(batch, batch_idx)

    each = Each(monitor := BatchNormMonitor())
    trainer(monitor, each).fit(Copied(normalised()), loader())
    assert_close(each.records, plain_run(normalised()))


def test_filtered_layers_keep_their_numbers() -> None:
    monitor = BatchNormMonitor(layers=r"net\.4")
    trainer(monitor).fit(Module(normalised()), loader())
    assert {tag.partition("/")[2] for tag in monitor.latest} == {"01_net.4"}


def test_a_filter_without_a_match_names_what_there_is() -> None:
    run = trainer(BatchNormMonitor(layers="conv"))
    with pytest.warns(UserWarning, match=r"matches layers='conv'; there are: net\.1, net\.4"):
        run.fit(Module(normalised()), loader())
    assert run.global_step == 3


def test_a_net_without_batch_norm_gets_one_warning_and_trains_on() -> None:
    run = trainer(BatchNormMonitor())
    with pytest.warns(UserWarning, match=r"no batch-norm modules.*F\.batch_norm") as caught:
        run.fit(Module(mlp()), loader())
    assert len([each for each in caught if "BatchNormMonitor" in str(each.message)]) == 1
    assert run.global_step == 3


@pytest.mark.parametrize(
    "wrong", [{"every_n_steps": 0}, {"smoothness_every_n_steps": 0}, {"budget": 0.0}, {"layers": "("}]
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BatchNormMonitor(**wrong)


def test_an_error_in_the_diagnostic_warns_once_and_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = Module(normalised())
    trainer().fit(untouched, loader())

    def broken(*args: Any) -> None:
        raise ArithmeticError("boom")

    monkeypatch.setattr("bnlab_callbacks.recorders.batch_norm.running_gap", broken)
    model = Module(normalised())
    with pytest.warns(UserWarning, match=r"off.*ArithmeticError at net\.1: boom|off.*ArithmeticError at net\.4: boom"):
        trainer(BatchNormMonitor()).fit(model, loader())
    assert hooks_of(model) == []
    for a, b in zip(model.state_dict().values(), untouched.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_resumed_run_goes_on_with_the_same_names_and_steps(tmp_path: Any) -> None:
    """The checkpoint loads with `weights_only=True`."""
    options: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 3}
    whole = trainer(BatchNormMonitor(2, smoothness_every_n_steps=3), **options)
    whole.fit(Module(normalised()), loader())
    first = trainer(BatchNormMonitor(2, smoothness_every_n_steps=3), **(options | {"max_epochs": 1}))
    first.fit(Module(normalised()), loader())
    first.save_checkpoint(path := tmp_path / "half.ckpt")
    torch.load(path, weights_only=True)
    second = trainer(BatchNormMonitor(2, smoothness_every_n_steps=3), **options)
    second.fit(Module(normalised()), loader(), ckpt_path=path)
    rows = [row for row in memory(first).rows + memory(second).rows if any("/" in tag for tag in row[1])]
    wanted = [row for row in memory(whole).rows if any("/" in tag for tag in row[1])]
    assert [step for step, _ in rows] == [step for step, _ in wanted]
    for (_, values), (_, expected) in zip(rows, wanted, strict=True):
        assert values.keys() == expected.keys()
        for tag in expected.keys() - {"diagnostics/overhead_frac"}:
            assert values[tag] == pytest.approx(expected[tag], rel=1e-5), tag
