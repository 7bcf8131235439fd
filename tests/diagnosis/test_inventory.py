"""What is known of a net by looking at it: the fans of its layers, and which of them a norm rescales."""

import pytest
import torch
from torch import nn

from bnlab_callbacks.core.weights import find_weights
from bnlab_callbacks.diagnosis.watching.batch_ends import BatchEnds, ranks_of
from bnlab_callbacks.diagnosis.watching.inventory import fans, norms_in_eval_mode, rescaled


class Attention(nn.Module):
    """Positions, an embedding, and what multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.ones(16, 8))
        self.words = nn.Embedding(50, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.rnn = nn.LSTM(8, 5)


def test_fans_are_the_fewer_of_inputs_and_outputs() -> None:
    net = nn.Sequential(nn.Linear(7, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 8, 3, groups=4), nn.ConvTranspose2d(9, 2, 2))
    assert fans(net, list(find_weights(net))) == {"0": 3, "1": 36, "2": 9, "3": 8}


def test_what_does_not_multiply_its_input_has_no_fan() -> None:
    net = Attention()
    assert fans(net, list(find_weights(net))) == {
        "attention.in_proj_weight": 8,
        "attention.out_proj": 8,
        "rnn.weight_ih_l0": 8,
        "rnn.weight_hh_l0": 5,
    }


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(512, 64),
        lambda: nn.LSTM(512, 8),
        lambda: nn.ConvTranspose2d(256, 3, 4, stride=2),
        lambda: nn.Conv2d(96, 96, 3, groups=96),
        lambda: nn.Bilinear(4, 4, 4),
    ],
)
def test_usual_weights_have_a_gain_near_one(build) -> None:  # type: ignore[no-untyped-def]
    net = build()
    weights = {weight.layer: weight.parameter for weight in find_weights(net)}
    for layer, fan in fans(net, list(find_weights(net))).items():
        assert 0.1 < float(weights[layer].detach().square().mean().sqrt()) * fan**0.5 < 1.7


def test_layers_right_before_a_norm_are_rescaled() -> None:
    net = nn.Sequential()
    for name, module in {
        "fc1": nn.Linear(4, 4),
        "drop": nn.Dropout(0.5),
        "norm1": nn.BatchNorm1d(4),
        "fc2": nn.Linear(4, 4),
        "act": nn.ReLU(),
        "norm2": nn.BatchNorm1d(4),
        "block": nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.GroupNorm(2, 4))),
        "fc3": nn.Linear(4, 4),
        "norm3": nn.LayerNorm(4),
    }.items():
        net.add_module(name, module)
    assert list(rescaled(net)) == ["fc1", "block.0"]


def test_the_smallest_batch_of_a_norm_is_kept_with_its_samples() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    ends = BatchEnds()
    ends.watch(net)
    for samples in (5, 2, 3):
        ends.gate.open = True
        net(torch.randn(samples, 1, 4, 4))
    ends.remove()
    assert ends.norm_values == {"1": (32, 2)}


def test_a_synchronized_norm_has_the_batches_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 4)
    assert [ranks_of(norm) for norm in (nn.SyncBatchNorm(2), nn.BatchNorm2d(2))] == [4, 1]


def test_a_norm_in_evaluation_mode_that_is_not_trained_rests() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[1].eval()
    assert norms_in_eval_mode(model) == ("1",)
    assert norms_in_eval_mode(model, with_gradient=True) == ()
    model(torch.randn(5, 3)).sum().backward()
    assert norms_in_eval_mode(model, with_gradient=True) == ("1",)
