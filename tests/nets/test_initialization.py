"""Initial weights against the formulas of section 2.4 of the thesis."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.errors import InputError
from bnlab.nets import ACTIVATIONS, build_net, init_family, initialize

RECTIFIERS = {
    "relu", "leaky_relu", "prelu", "elu", "selu", "gelu", "silu", "softplus", "relu6", "hardswish", "mish"
}  # fmt: skip
SATURATING = {"sigmoid", "tanh", "softsign", "hardtanh"}


def small_net(activation: nn.Module | None = None) -> nn.Sequential:
    """(N, 8, 5, 5) → (N, 30), big enough for statistics: a convolution with fans 8·9 and 40·9, and two linears."""
    return nn.Sequential(
        nn.Conv2d(8, 40, 3),
        nn.BatchNorm2d(40),
        activation or nn.ReLU(),
        nn.Flatten(),
        nn.Linear(360, 50),
        nn.BatchNorm1d(50),
        nn.Linear(50, 30),
    )


KAIMING = [math.sqrt(2 / (8 * 9)), math.sqrt(2 / 360), math.sqrt(2 / 50)]
XAVIER = [math.sqrt(2 / (8 * 9 + 40 * 9)), math.sqrt(2 / (360 + 50)), math.sqrt(2 / (50 + 30))]


def weights(net: nn.Module) -> list[Tensor]:
    return [module.weight.detach() for module in net.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def assert_normal(weight: Tensor, std: float) -> None:
    """Mean, standard deviation and share within one σ lie within four standard errors of N(0, std²)."""
    n = weight.numel()
    assert abs(weight.mean().item()) < 4 * std / math.sqrt(n)
    assert abs(weight.std().item() - std) < 4 * std / math.sqrt(2 * n)
    within = (weight.abs() < std).double().mean().item()  # 68 % for a normal, 58 % for a uniform distribution
    assert abs(within - 0.6827) < 4 * math.sqrt(0.6827 * 0.3173 / n)


@pytest.mark.parametrize(
    ("scheme", "activation", "std", "expected"),
    [
        ("kaiming", "relu", None, KAIMING),
        ("kaiming", "leaky_relu", None, KAIMING),  # √2 whatever the slope
        ("kaiming", "sigmoid", None, KAIMING),  # a named scheme beats the activation's own
        ("xavier", "relu", None, XAVIER),
        ("xavier", "tanh", None, XAVIER),  # no gain of 5/3
        ("normal", "relu", 1.0, [1.0] * 3),
        ("normal", "relu", 0.0001, [0.0001] * 3),
        ("auto", "elu", None, KAIMING),
        ("auto", "sigmoid", None, XAVIER),
    ],
)
def test_weights_are_normal_with_the_formulas_spread(
    scheme: Any, activation: Any, std: float | None, expected: list[float]
) -> None:
    net = small_net()
    torch.manual_seed(3)
    initialize(net, scheme, activation, std)
    drawn = weights(net)
    assert len(drawn) == len(expected)
    for weight, deviation in zip(drawn, expected, strict=True):
        assert_normal(weight, deviation)


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
@pytest.mark.parametrize(("activation", "family"), [("relu", "kaiming"), ("sigmoid", "xavier")])
def test_the_thesis_nets_get_the_scheme_of_their_activation(architecture: Any, activation: Any, family: str) -> None:
    torch.manual_seed(1)
    net = build_net(architecture, 3, (32, 32), 10, activation=activation)
    initialize(net, "auto", activation)
    first = weights(net)[0]
    last = weights(net)[-1]
    assert last.shape[0] == 10
    n_out, n_in = (100, 3 * 32 * 32) if architecture == "mlp" else (64 * 9, 3 * 9)
    last_in = 100 if architecture == "mlp" else 512
    assert_normal(first, math.sqrt(2 / n_in if family == "kaiming" else 2 / (n_in + n_out)))
    assert_normal(last, math.sqrt(2 / last_in if family == "kaiming" else 2 / (last_in + 10)))


def test_biases_are_zero_and_batch_norm_starts_as_the_identity() -> None:
    net = small_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7)
        for buffer in net.buffers():
            buffer.fill_(7)
    initialize(net, "auto", "relu")
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
            assert not module.running_mean.any()
            assert (module.running_var == 1).all()
            assert module.num_batches_tracked == 0


def test_layers_without_bias_and_norms_without_parameters_pass() -> None:
    initialize(nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False)), "auto", "relu")


def test_a_learned_activation_keeps_its_own_start() -> None:
    net = small_net(nn.PReLU(init=0.125))
    initialize(net, "normal", "prelu", 1.0)
    assert net[2].weight.item() == 0.125


def test_the_parameters_stay_the_same_objects() -> None:
    net = small_net()
    before = list(net.parameters())
    initialize(net, "auto", "relu")
    assert all(old is new for old, new in zip(before, net.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize(("scheme", "std"), [("kaiming", None), ("xavier", None), ("normal", 0.5)])
def test_the_seed_decides_the_weights(scheme: Any, std: float | None) -> None:
    drawn = []
    for seed in (5, 5, 6):
        net = small_net()
        torch.manual_seed(seed)
        initialize(net, scheme, "relu", std)
        drawn.append(torch.cat([weight.flatten() for weight in weights(net)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_every_activation_has_its_family() -> None:
    assert set(ACTIVATIONS) == RECTIFIERS | SATURATING
    assert {name for name in ACTIVATIONS if init_family(name) == "kaiming"} == RECTIFIERS
    assert {name for name in ACTIVATIONS if init_family(name) == "xavier"} == SATURATING


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("lecun", "relu"), "init 'lecun' is unknown. Choose one of: auto, kaiming, xavier, normal."),
        (("auto", "swish"), "activation 'swish' is unknown. Choose one of: relu, "),
        (("normal", "relu"), "init 'normal' needs init_std"),
        (("kaiming", "relu", 1.0), "init_std is 1.0, but init 'kaiming' computes its own"),
        (("auto", "relu", 1.0), "init_std is 1.0, but init 'auto' computes its own"),
        (("normal", "relu", 0.0), "init_std is 0.0, but must be a finite number above 0"),
        (("normal", "relu", -1.0), "init_std is -1.0"),
        (("normal", "relu", math.inf), "init_std is inf"),
        (("normal", "relu", math.nan), "init_std is nan"),
    ],
)
def test_a_bad_argument_is_told_and_the_net_left_alone(arguments: tuple[Any, ...], told: str) -> None:
    net = small_net()
    kept = [weight.clone() for weight in weights(net)]
    with pytest.raises(InputError, match=re.escape(told)):
        initialize(net, *arguments)
    assert all(torch.equal(old, new) for old, new in zip(kept, weights(net), strict=True))


def test_an_unknown_activation_has_no_family() -> None:
    name: Any = "swish"
    with pytest.raises(InputError, match="swish"):
        init_family(name)
