"""Two processes under DDP on the CPU against one process with the same global batches."""

import pytest
import torch

from bnlab_callbacks import ActivationMonitor, GradientMonitor
from tests.callbacks.launch_ranks import Ranks, same, two_ranks
from tests.callbacks.small_runs import Each, Module, data, loader, mlp, trainer

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
