"""Which parameters are watched, and which of them are a layer's weights."""

import pytest
import torch
from torch import nn

from bnlab_callbacks.core.weights import find_weights, is_layer

RANDOM = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Holder(nn.Module):
    """A module of somebody's own with one parameter."""

    def __init__(self, values: torch.Tensor, key: str = "weight", **words: int) -> None:
        super().__init__()
        self.register_parameter(key, nn.Parameter(values))
        for word, value in words.items():
            setattr(self, word, value)


class FlatNorm(Holder):
    """A norm that names what comes in and goes out."""


@pytest.mark.parametrize(
    ("module", "layers"),
    [
        (nn.Linear(3, 1), {"weight"}),
        (nn.Conv1d(1, 1, 1), {"weight"}),
        (nn.GRU(3, 2), {"weight_ih_l0", "weight_hh_l0"}),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=3, add_bias_kv=True),
            {"q_proj_weight", "k_proj_weight", "v_proj_weight"},
        ),
        (nn.LayerNorm((4, 3)), set()),
        (Holder(RANDOM), {"weight"}),
        (Holder(RANDOM[:, :1], "gain"), set()),  # (C, 1): one number a channel
        (Holder(torch.ones(4, 3, 3), "gain"), set()),  # a norm over (C, H, W), perhaps
    ],
)
def test_a_layer_has_fans(module: nn.Module, layers: set[str]) -> None:
    own = dict(module.named_parameters(recurse=False))
    assert {key for key, value in own.items() if value.ndim > 1 and is_layer(module, key, value)} == layers


def test_flat_weights_are_watched_where_the_module_has_inputs_and_outputs() -> None:
    flat = RANDOM.flatten()
    net = nn.ModuleDict(
        {
            "e3nn": Holder(flat.clone(), irreps_in=4, irreps_out=3),
            "escnn": Holder(flat.clone(), "weights", in_type=4, out_type=3),
            "two": Holder(flat.clone(), irreps_in1=4, irreps_in2=4, irreps_out=3),
            "gain": Holder(flat.clone()),
            "bias": Holder(flat.clone(), "bias", in_type=4, out_type=3),
            "norm": FlatNorm(flat.clone(), in_type=4, out_type=3),
            "torch": nn.BatchNorm1d(3),
        }
    )
    assert [weight.layer for weight in find_weights(net)] == ["e3nn", "escnn.weights", "two"]


def test_frozen_weights_are_given_on_demand_under_the_same_names() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    assert [weight.layer for weight in find_weights(net)] == ["1"]
    assert [weight.layer for weight in find_weights(net, frozen=True)] == ["0", "1"]
