"""Two processes under DDP on the CPU against one process with the same global batches."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnlab_callbacks import ActivationMonitor, GradientMonitor
from tests.callbacks.launch_ranks import Ranks, same, two_ranks
from tests.callbacks.small_runs import Each, Functional, Module, data, loader, mlp, trainer
from tests.callbacks.test_attention_monitor import records_by_hand
from tests.callbacks.test_batch_norm_monitor import by_hand, normalised
from tests.replica.test_smoothness import Reference

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each of the two ranks wrote."""
    return two_ranks("tests.callbacks.two_ranks", tmp_path_factory.mktemp("ranks"))


def test_gradients_are_bitwise_equal_on_both_ranks_and_those_of_one_process(ranks: Ranks) -> None:
    """Gradients are read after the ranks have averaged them."""
    first, second = (rank["statistics"]["gradients"] for rank in ranks)
    assert same(first, second)
    each = Each(monitor := GradientMonitor())
    trainer(monitor, each, accumulate_grad_batches=2, gradient_clip_val=0.05).fit(Module(mlp()), loader(48))
    assert len(first) == len(each.records) == 3
    for ours, alone in zip(first, each.records, strict=True):
        assert ours == pytest.approx(alone, rel=1e-4, abs=1e-7)


def test_activations_are_those_of_the_global_batch(ranks: Ranks) -> None:
    first, second = (rank["statistics"]["activations"] for rank in ranks)
    assert same(first, second)
    each = Each(monitor := ActivationMonitor(dead_window=2))
    run = trainer(monitor, each, accumulate_grad_batches=2, gradient_clip_val=0.05)
    run.fit(Module(mlp()), loader(48))
    assert len(first) == len(each.records) == 3
    for ours, alone in zip(first, each.records, strict=True):
        assert ours == pytest.approx(alone, rel=1e-5, abs=1e-9)
        for tag in alone:
            if tag.startswith(("dead", "zero", "sat")):
                assert ours[tag] == alone[tag], tag
    epoch = ranks[1]["statistics"]["epoch"]  # callback_metrics agree on all ranks, as EarlyStopping needs
    assert same(epoch, ranks[0]["statistics"]["epoch"])
    for tag in ("act_mean_epoch/00_net.1", "dead_frac_epoch/00_net.1", "dead_samples_epoch/00_net.1"):
        assert epoch[tag] == pytest.approx(float(run.callback_metrics[tag]), rel=1e-5)


def test_attention_is_that_of_the_global_batch(ranks: Ranks) -> None:
    first, second = (rank["attention"]["records"] for rank in ranks)
    assert same(first, second)
    wanted = records_by_hand(3, 8)
    assert len(first) == 3
    for ours, alone in zip(first, wanted, strict=True):
        assert ours == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_functions_are_the_same_layers_on_two_ranks_as_in_one_process(ranks: Ranks) -> None:
    first, second = (rank["functional"] for rank in ranks)
    assert same(first, second)
    each = Each(monitor := ActivationMonitor())
    trainer(monitor, each).fit(Functional(), loader())
    assert len(first) == len(each.records) == 3
    for ours, alone in zip(first, each.records, strict=True):
        assert ours == pytest.approx(alone, rel=1e-5, abs=1e-9)


def test_sleep_on_one_rank_shows_on_the_other(ranks: Ranks) -> None:
    """Ranks wait for the slowest, which each of them must tell."""
    first, second = (rank["statistics"]["time"] for rank in ranks)
    assert same(first, second)
    assert first["time/train_s"] >= 0.6  # 6 batches of 0.1 s
    assert first["time/samples_per_s"] == pytest.approx(48 / first["time/train_s"])


def test_only_the_first_rank_writes(ranks: Ranks) -> None:
    assert {"grad_rms/00_net.0", "act_mean/00_net.1", "time/epoch_s"} <= set(ranks[0]["statistics"]["tags"])
    assert ranks[1]["statistics"]["tags"] == []


def test_batches_of_other_sizes_on_ranks_weigh_by_their_samples(ranks: Ranks) -> None:
    """Rank 0 has batches of 4 and 4 samples, rank 1 of 4 and 1."""
    first, second = (rank["uneven"]["activations"] for rank in ranks)
    assert same(first, second)
    assert first[0]["dead_samples/00_net.1"] == 8
    x = data(16)[0]
    relu = mlp()[:2](torch.cat([x[:4], x[8:12]])).detach()
    assert first[0]["act_mean/00_net.1"] == pytest.approx(float(relu.double().mean()), rel=1e-6)
    assert len(first) == 2
    assert first[1]["dead_samples/00_net.1"] == 8 + 5


def test_ranks_with_other_layers_leave_the_step_out_and_do_not_hang(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["other_layers"]["steps"] == 3
        assert rank["other_layers"]["records"] == 2
    told = ranks[0]["other_layers"]["told"]
    assert len(told) == 1
    assert "different layers" in told[0]


def test_a_diagnostic_that_fails_on_one_rank_stops_on_all_and_training_goes_on(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["failure_on_one"]["steps"] == 3
        assert rank["failure_on_one"]["records"] == 1
        assert rank["failure_on_one"]["active"] is False
    assert len(ranks[0]["failure_on_one"]["told"]) == 1


def test_parameters_that_are_sharded_by_hand_are_refused_by_name(ranks: Ranks) -> None:
    assert [rank["sharded_by_hand"] for rank in ranks] == ["DTensor", "DTensor"]


def batch_norm_by_hand(steps: int = 3) -> list[dict[str, float]]:
    """Every rank normalises its own samples; gradients are averaged, running statistics are the first rank's."""
    net = normalised()
    x, y = data()
    records = []
    for step in range(steps):
        found: list[dict[str, float]] = []
        copies = [copy.deepcopy(net) for _ in range(2)]
        shards = [(x[8 * step + rank : 8 * step + 8 : 2], y[8 * step + rank : 8 * step + 8 : 2]) for rank in range(2)]
        for own, (out, target) in zip(copies, shards, strict=True):
            one: dict[str, float] = {}
            for index, layer in enumerate(own):
                if isinstance(layer, nn.BatchNorm1d):
                    name = f"{0 if index == 1 else 1:02d}_net.{index}"
                    one |= {f"{quantity}/{name}": value for quantity, value in by_hand(out, layer).items()}
                out = layer(out)
            F.mse_loss(out, target).backward()  # type: ignore[no-untyped-call]
            found.append(one)
        before, net = copy.deepcopy(net), copies[0]
        with torch.no_grad():
            for mine, other in zip(net.parameters(), copies[1].parameters(), strict=True):
                assert mine.grad is not None
                assert other.grad is not None
                mine.sub_(0.1 * (mine.grad + other.grad) / 2)
        net.zero_grad()
        after = {name: value.detach().clone() for name, value in net.named_parameters()}
        for one, shard in zip(found, shards, strict=True):
            one |= Reference(copy.deepcopy(before)).record(after, *shard)
        records.append({tag: (found[0][tag] + found[1][tag]) / 2 for tag in found[0]})
    return records


def test_batch_norm_values_are_means_over_the_ranks_own_batches(ranks: Ranks) -> None:
    first, second = (rank["batch_norm"]["values"]["records"] for rank in ranks)
    assert same(first, second)
    expected = batch_norm_by_hand()
    assert len(first) == len(expected) == 3
    for record, wanted in zip(first, expected, strict=True):
        assert record == pytest.approx(wanted, rel=2e-4, abs=1e-6)


def test_the_run_is_the_same_without_the_batch_norm_monitor(ranks: Ranks) -> None:
    for rank in ranks:
        assert same(rank["batch_norm"]["values"]["weights"], rank["batch_norm"]["unwatched"]["weights"])


def test_ranks_with_other_norms_leave_the_step_out_and_do_not_hang(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["batch_norm"]["other_layers"]["steps"] == 3
        has = [any(tag.startswith("bn_") for tag in record) for record in rank["batch_norm"]["other_layers"]["records"]]
        assert has == [True, False, True]
    told = ranks[0]["batch_norm"]["other_layers"]["told"]
    assert len(told) == 1
    assert "different layers" in told[0]


@pytest.mark.parametrize("kind", ["hooks_fail_on_one", "smoothness_fails_on_one"])
def test_what_fails_on_one_rank_stops_on_all_and_training_goes_on(ranks: Ranks, kind: str) -> None:
    for rank in ranks:
        assert rank["batch_norm"][kind]["steps"] == 20
    first, second = (rank["batch_norm"][kind]["records"] for rank in ranks)
    assert same(first, second)
    assert len(ranks[0]["batch_norm"][kind]["told"]) == 1
    assert "another rank" in ranks[0]["batch_norm"][kind]["told"][0]
    if kind == "hooks_fail_on_one":
        assert "is off" in ranks[0]["batch_norm"][kind]["told"][0]
    else:
        assert all("bn_drift/00_net.1" in record for record in first)
        assert [("smoothness/loss_min" in record) for record in first] == [True, True] + [False] * 18
