"""AttentionMonitor in real runs against attention computed by hand in a plain training loop."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks import AttentionMonitor, TrainingDiagnosis
from tests.callbacks.small_runs import Each, Module, hooks_of, memory, trainer
from tests.recorders.test_attention import by_hand

EVERY = ("attn_logit_max", "attn_entropy", "attn_first", "attn_first_even", "attn_one_key_frac", "attn_no_key_frac")


class CausalAttention(nn.Module):
    """Two heads over (N, T, 8)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.unflatten(-1, (2, 4)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(*self.split(x), dropout_p=self.dropout, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Transformer(nn.Module):
    """(N, 6) tokens → (N, 3); always the same weights."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.embed = nn.Linear(1, 8)
            self.first, self.second = CausalAttention(dropout), CausalAttention(dropout)
            self.head = nn.Linear(8, 3)
            nn.init.normal_(self.first.qkv.weight)
            nn.init.normal_(self.second.qkv.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.unsqueeze(-1))
        x = x + self.first(x)
        out: Tensor = self.head((x + self.second(x)).mean(1))
        return out


def samples(number: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(number, 6, generator=generator), torch.randn(number, 3, generator=generator)


def loader(number: int = 12, batch_size: int = 4) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*samples(number)), batch_size=batch_size)


def records_by_hand(steps: int, size: int) -> list[dict[str, float]]:
    """What a plain loop has at each step."""
    net, allowed = Transformer(), torch.ones(6, 6).tril().bool()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    given: dict[str, Tensor] = {}
    for name in ("first", "second"):
        hook = lambda module, args, name=name: given.update({name: args[0].detach()})  # noqa: E731
        getattr(net, name).register_forward_pre_hook(hook)
    found = []
    x, y = samples(size * steps)
    for bx, by in zip(x.split(size), y.split(size), strict=True):
        loss = F.mse_loss(net(bx), by)
        record: dict[str, float] = {}
        for place, name in enumerate(given):
            q, k, _ = getattr(net, name).split(given[name])
            record |= by_hand(q.double() @ k.double().transpose(-1, -2) / 2, allowed, f"{place:02d}_net.{name}")
        found.append(record)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def fit(*callbacks: Any, model: nn.Module | None = None, batches: Any = None, **options: Any) -> pl.Trainer:
    run = trainer(*callbacks, **options)
    torch.manual_seed(7)  # for dropout
    run.fit(Module(Transformer()) if model is None else model, batches or loader())  # type: ignore[arg-type]
    return run


def test_every_record_equals_the_plain_loop() -> None:
    each = Each(monitor := AttentionMonitor())
    run = fit(monitor, each)
    wanted = records_by_hand(3, 4)
    assert len(each.records) == 3
    for record, by_loop in zip(each.records, wanted, strict=True):
        assert record == pytest.approx(by_loop, rel=1e-5, abs=1e-7)
    assert monitor.latest == each.records[-1]
    assert each.records[0]["attn_one_key_frac/00_net.first"] == pytest.approx(1 / 6)
    epoch = run.callback_metrics
    for tag in wanted[0]:
        quantity, _, layer = tag.partition("/")
        values = [record[tag] for record in each.records]
        expected = max(values) if quantity == "attn_logit_max" else sum(values) / 3
        assert float(epoch[f"{quantity}_epoch/{layer}"]) == pytest.approx(expected, rel=1e-6)


def test_accumulated_batches_are_one_record_and_two_runs_draw_alike() -> None:
    found = []
    for _ in range(2):
        each = Each(monitor := AttentionMonitor())
        run = fit(monitor, each, accumulate_grad_batches=2, batches=loader(24))
        assert memory(run).steps("attn_entropy/00_net.first") == [0, 1, 2]
        found.append(each.records)
    assert found[0] == found[1]
    size = records_by_hand(1, 8)[0]
    assert found[0][0]["attn_logit_max/00_net.first"] == pytest.approx(size["attn_logit_max/00_net.first"], rel=1e-5)
    assert found[0][0]["attn_entropy/00_net.first"] == pytest.approx(size["attn_entropy/00_net.first"], rel=1e-5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_weights_are_the_same_bit_for_bit(precision: Any) -> None:
    """With dropout, larger batches than are drawn from, and beside the diagnosis, which has a function mode, too."""
    found = []
    for callbacks in ([], [AttentionMonitor(2)], [TrainingDiagnosis(summary=False), AttentionMonitor(heads=True)]):
        model = Module(Transformer(dropout=0.2))
        run = fit(*callbacks, model=model, batches=loader(36, 12), precision=precision)
        found.append([*run.lightning_module.parameters(), torch.rand(3)])
        assert hooks_of(run.lightning_module) == []
        assert torch.overrides._get_current_function_mode_stack() == []
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_only_due_steps_and_no_validation_count() -> None:
    run = trainer(AttentionMonitor(2), num_sanity_val_steps=2, max_epochs=2)
    run.fit(Module(Transformer()), loader(20), loader(8))
    assert memory(run).steps("attn_entropy/00_net.first") == [0, 2, 4, 5, 6, 8]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_records_what_the_undisturbed_one_does(tmp_path: Path) -> None:
    """Which queries are drawn depends on the step alone; batches are alike, since Lightning starts them over."""
    batches = DataLoader(TensorDataset(*(each.repeat(8, 1) for each in samples())), batch_size=12)

    def life(folder: str, **resume: Any) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        each = Each(monitor := AttentionMonitor(2))
        keep = pl.callbacks.ModelCheckpoint(tmp_path / folder, save_top_k=-1, filename="{step}", every_n_train_steps=3)
        run = trainer(monitor, each, keep, max_epochs=2, enable_checkpointing=True)
        run.fit(Module(Transformer(), lambda p: torch.optim.SGD(p, lr=1e-3)), batches, **resume)
        return each.records, {tag: run.callback_metrics[tag] for tag in run.callback_metrics if tag.startswith("attn_")}

    whole, epoch = life("whole")
    rest, same_epoch = life("rest", ckpt_path=tmp_path / "whole" / "step=12.ckpt", weights_only=True)
    assert len(whole) == 8
    assert rest == whole[-2:]
    assert same_epoch == epoch


def test_after_an_exception_nothing_is_left_and_a_second_run_records() -> None:
    class Broken(Module):
        armed = True

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.armed and self.trainer.global_step == 1:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    monitor, model = AttentionMonitor(), Broken(Transformer())
    with pytest.raises(RuntimeError, match="broken"):
        fit(monitor, model=model)
    assert hooks_of(model) == []
    assert torch.overrides._get_current_function_mode_stack() == []
    model.armed = False
    run = fit(monitor, model=model)
    assert memory(run).steps("attn_entropy/00_net.first") == [0, 1, 2]


def test_manual_optimization_with_several_backward_passes() -> None:
    class Manual(Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            for half in (slice(0, 2), slice(2, 4)):
                self.manual_backward(F.mse_loss(self(batch[0][half]), batch[1][half]) / 2)
            optimizer.step()

    each = Each(monitor := AttentionMonitor())
    fit(monitor, each, model=Manual(Transformer()))
    wanted = records_by_hand(1, 4)[0]
    layer = "00_net.first"
    record = {tag.removesuffix(".2"): value for tag, value in each.records[0].items()}
    assert record[f"attn_logit_max/{layer}"] <= wanted[f"attn_logit_max/{layer}"] + 1e-5
    assert {tag.partition("/")[2] for tag in each.records[0]} >= {layer, "01_net.second"}


def test_filtered_layers_keep_their_numbers_and_heads_are_logged_on_request() -> None:
    monitor = AttentionMonitor(layers="second", heads=True)
    fit(monitor)
    layers = {tag.partition("/")[2] for tag in monitor.latest}
    assert layers == {"01_net.second", "01_net.second.head0", "01_net.second.head1"}
    assert {tag.partition("/")[0] for tag in monitor.latest} == set(EVERY)
    heads = [monitor.latest[f"attn_logit_max/01_net.second.head{head}"] for head in range(2)]
    assert max(heads) == monitor.latest["attn_logit_max/01_net.second"]


def test_a_net_without_attention_gets_one_warning() -> None:
    with pytest.warns(UserWarning, match="recorded nothing: no attention ran") as caught:
        fit(AttentionMonitor(), model=Module(nn.Linear(6, 3)), max_epochs=2)
    assert len([each for each in caught if "AttentionMonitor" in str(each.message)]) == 1


def test_a_filter_without_a_match_names_what_there_is() -> None:
    with pytest.warns(UserWarning, match=r"matches layers='conv'; there are: net\.first, net\.second"):
        fit(AttentionMonitor(layers="conv"))


def test_what_ran_and_was_not_recorded_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Teacher(Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.teacher = copy.deepcopy(net)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.teacher.first.eval()
            with torch.no_grad():
                target = self.teacher(batch[0])
            return F.mse_loss(self(batch[0]), target)

    each = Each(monitor := AttentionMonitor())
    said: list[str] = []
    monkeypatch.setattr("bnlab_callbacks.attention_monitor.rank_zero_info", said.append)
    fit(monitor, each, model=Teacher(Transformer()), max_epochs=2)
    assert {tag.partition("/")[2] for tag in monitor.latest} == {"00_net.first", "01_net.second"}
    assert sorted(said) == [
        "AttentionMonitor: 1 layer runs in evaluation mode: not recorded (teacher.first).",
        "AttentionMonitor: 1 layer runs without gradients: not recorded (teacher.second).",
    ]


def test_a_compiled_net_is_named_and_trains_as_it_would() -> None:
    found = []
    for callbacks in ([], [AttentionMonitor()]):
        torch._dynamo.reset()
        model = Module(torch.compile(Transformer(), backend="eager"))  # type: ignore[arg-type]
        if callbacks:
            with pytest.warns(UserWarning, match="recorded nothing.*compiled"):
                fit(*callbacks, model=model)
        else:
            fit(model=model)
        found.append([parameter.detach() for parameter in model.parameters()])
    torch._dynamo.reset()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_error_in_the_monitor_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> None:
        raise ArithmeticError("boom")

    monkeypatch.setattr("bnlab_callbacks.recorders.attention_tables.join_sums", broken)
    monkeypatch.setattr("bnlab_callbacks.recorders.attention.CallKey", broken)
    with pytest.warns(UserWarning, match=r"AttentionMonitor is off.*boom"):
        run = fit(AttentionMonitor())
    assert run.global_step == 3
    assert hooks_of(run.lightning_module) == []
