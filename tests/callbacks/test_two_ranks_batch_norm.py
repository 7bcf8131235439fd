"""BatchNormMonitor in two processes under DDP on the CPU, against a loop that plays both ranks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.callbacks.launch_ranks import Ranks, same, two_ranks
from tests.callbacks.small_runs import data
from tests.callbacks.test_batch_norm_monitor import by_hand, normalised
from tests.replica.test_smoothness import Reference

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each of the two ranks wrote."""
    return two_ranks("tests.callbacks.two_ranks_batch_norm", tmp_path_factory.mktemp("ranks"))


def both_ranks_by_hand(steps: int = 3) -> list[dict[str, float]]:
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


def test_values_are_means_over_the_ranks_own_batches(ranks: Ranks) -> None:
    first, second = (rank["values"]["records"] for rank in ranks)
    assert same(first, second)
    expected = both_ranks_by_hand()
    assert len(first) == len(expected) == 3
    for record, wanted in zip(first, expected, strict=True):
        assert record == pytest.approx(wanted, rel=2e-4, abs=1e-6)


def test_the_run_is_the_same_without_the_monitor(ranks: Ranks) -> None:
    for rank in ranks:
        assert same(rank["values"]["weights"], rank["unwatched"]["weights"])


def test_ranks_with_other_layers_leave_the_step_out_and_do_not_hang(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["other_layers"]["steps"] == 3
        has = [any(tag.startswith("bn_") for tag in record) for record in rank["other_layers"]["records"]]
        assert has == [True, False, True]
    told = ranks[0]["other_layers"]["told"]
    assert len(told) == 1
    assert "different layers" in told[0]


@pytest.mark.parametrize("kind", ["hooks_fail_on_one", "smoothness_fails_on_one"])
def test_what_fails_on_one_rank_stops_on_all_and_training_goes_on(ranks: Ranks, kind: str) -> None:
    for rank in ranks:
        assert rank[kind]["steps"] == 20
    first, second = (rank[kind]["records"] for rank in ranks)
    assert same(first, second)
    assert len(ranks[0][kind]["told"]) == 1
    assert "another rank" in ranks[0][kind]["told"][0]
    if kind == "hooks_fail_on_one":
        assert "is off" in ranks[0][kind]["told"][0]
    else:
        assert all("bn_drift/00_net.1" in record for record in first)
        assert [("smoothness/loss_min" in record) for record in first] == [True, True] + [False] * 18
