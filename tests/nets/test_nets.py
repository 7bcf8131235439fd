"""The nets against tables 6.2 and 6.3 of the thesis, and the experiments' YAML files against its chapter 7."""

import itertools
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from torch import Tensor, nn

from bnlab.errors import InputError
from bnlab.nets import ACTIVATIONS, ActivationName, build_net, initialize, make_activation
from bnlab.nets.thesis_nets import HiddenStyle, build_cnn, build_mlp

MNIST = (1, (32, 32), 10)
CIFAR10 = (3, (32, 32), 10)
CIFAR100 = (3, (32, 32), 100)
SIZE = (32, 32)


def build(architecture: str, *shape: Any, **options: Any) -> nn.Sequential:
    """Build without memory or random draws: enough to count and to look at the layers."""
    with torch.device("meta"):
        return build_net(architecture, *shape, **options)


def parameter_count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def names(net: nn.Sequential) -> list[str]:
    return [name for name, _ in net.named_children()]


# Counted by hand from table 6.2: weights of the three hidden layers, of the last layer, and its biases.
MLP_MNIST_WEIGHTS = 1 * 32 * 32 * 100 + 100 * 100 + 100 * 100
MLP_CIFAR_WEIGHTS = 3 * 32 * 32 * 100 + 100 * 100 + 100 * 100
MLP_BIASES = 100 + 100 + 100
MLP_NORMS = 2 * (100 + 100 + 100)  # γ and β
MLP_LAST_10 = 100 * 10 + 10
MLP_LAST_100 = 100 * 100 + 100

# Counted by hand from table 6.3: only the first convolution depends on the image's channels.
CNN_FIRST_MNIST = 1 * 64 * 3 * 3
CNN_FIRST_CIFAR = 3 * 64 * 3 * 3
CNN_WEIGHTS_AFTER_FIRST = (
    (64 * 64) * 9
    + (64 * 128 + 128 * 128) * 9
    + (128 * 256 + 256 * 256) * 9
    + (256 * 512 + 512 * 512) * 9
    + (512 * 512 + 512 * 512) * 9
    + (512 * 1 * 1 * 512 + 512 * 512)
)
CNN_BIASES = 64 + 64 + 128 + 128 + 256 + 256 + 512 + 512 + 512 + 512 + 512 + 512
CNN_NORMS = 2 * CNN_BIASES
CNN_LAST_10 = 512 * 10 + 10
CNN_LAST_100 = 512 * 100 + 100

HAND_COUNTS = [
    ("mlp", MNIST, MLP_MNIST_WEIGHTS + MLP_LAST_10, MLP_BIASES, MLP_NORMS),
    ("mlp", CIFAR10, MLP_CIFAR_WEIGHTS + MLP_LAST_10, MLP_BIASES, MLP_NORMS),
    ("mlp", CIFAR100, MLP_CIFAR_WEIGHTS + MLP_LAST_100, MLP_BIASES, MLP_NORMS),
    ("cnn", MNIST, CNN_FIRST_MNIST + CNN_WEIGHTS_AFTER_FIRST + CNN_LAST_10, CNN_BIASES, CNN_NORMS),
    ("cnn", CIFAR10, CNN_FIRST_CIFAR + CNN_WEIGHTS_AFTER_FIRST + CNN_LAST_10, CNN_BIASES, CNN_NORMS),
    ("cnn", CIFAR100, CNN_FIRST_CIFAR + CNN_WEIGHTS_AFTER_FIRST + CNN_LAST_100, CNN_BIASES, CNN_NORMS),
]


@pytest.mark.parametrize(("architecture", "shape", "without_hidden_biases", "biases", "norms"), HAND_COUNTS)
def test_parameter_counts_equal_the_hand_counts(
    architecture: str, shape: tuple[Any, ...], without_hidden_biases: int, biases: int, norms: int
) -> None:
    vanilla = build(architecture, *shape)
    before = build(architecture, *shape, batch_norm=True, norm_position="before")
    after = build(architecture, *shape, batch_norm=True, norm_position="after")
    assert parameter_count(vanilla) == without_hidden_biases + biases
    assert parameter_count(before) == without_hidden_biases + norms  # no bias where batch norm follows
    assert parameter_count(after) == without_hidden_biases + biases + norms


def test_two_totals_worked_out_to_the_last_digit() -> None:
    assert parameter_count(build("mlp", *MNIST)) == 102_400 + 100 + 10_100 + 10_100 + 1_010
    assert parameter_count(build("cnn", *CIFAR10)) == (
        1_792 + 36_928 + 73_856 + 147_584 + 295_168 + 590_080 + 1_180_160 + 3 * 2_359_808 + 2 * 262_656 + 5_130
    )


MLP_ORDERS = {
    "vanilla": "flatten fc1 act1 fc2 act2 fc3 act3 logits",
    "before": "flatten fc1 norm1 act1 fc2 norm2 act2 fc3 norm3 act3 logits",
    "after": "flatten fc1 act1 norm1 fc2 act2 norm2 fc3 act3 norm3 logits",
    "vanilla+dropout": "flatten fc1 act1 drop1 fc2 act2 drop2 fc3 act3 logits",
    "before+dropout": "flatten fc1 norm1 act1 drop1 fc2 norm2 act2 drop2 fc3 norm3 act3 logits",
    "after+dropout": "flatten fc1 act1 norm1 drop1 fc2 act2 norm2 drop2 fc3 act3 norm3 logits",
}
CNN_GROUPS = {  # one of the five groups, {g} its number
    "vanilla": "conv{g}_1 act{g}_1 conv{g}_2 act{g}_2 pool{g}",
    "before": "conv{g}_1 norm{g}_1 act{g}_1 conv{g}_2 norm{g}_2 act{g}_2 pool{g}",
    "after": "conv{g}_1 act{g}_1 norm{g}_1 conv{g}_2 act{g}_2 norm{g}_2 pool{g}",
    "vanilla+dropout": "conv{g}_1 act{g}_1 drop{g} conv{g}_2 act{g}_2 pool{g}",
    "before+dropout": "conv{g}_1 norm{g}_1 act{g}_1 drop{g} conv{g}_2 norm{g}_2 act{g}_2 pool{g}",
    "after+dropout": "conv{g}_1 act{g}_1 norm{g}_1 drop{g} conv{g}_2 act{g}_2 norm{g}_2 pool{g}",
}
CNN_ENDS = {
    "vanilla": "flatten fc1 act_fc1 fc2 act_fc2 logits",
    "before": "flatten fc1 norm_fc1 act_fc1 fc2 norm_fc2 act_fc2 logits",
    "after": "flatten fc1 act_fc1 norm_fc1 fc2 act_fc2 norm_fc2 logits",
    "vanilla+dropout": "flatten fc1 act_fc1 fc2 act_fc2 drop_fc logits",
    "before+dropout": "flatten fc1 norm_fc1 act_fc1 fc2 norm_fc2 act_fc2 drop_fc logits",
    "after+dropout": "flatten fc1 act_fc1 norm_fc1 fc2 act_fc2 norm_fc2 drop_fc logits",
}


def options_of(variant: str) -> dict[str, Any]:
    kind, _, dropout = variant.partition("+")
    options: dict[str, Any] = {"dropout": 0.5 if dropout else 0.0, "batch_norm": kind != "vanilla"}
    return options if kind == "vanilla" else {**options, "norm_position": kind}


@pytest.mark.parametrize("variant", MLP_ORDERS)
def test_the_mlp_runs_its_layers_in_the_thesis_order(variant: str) -> None:
    assert names(build("mlp", *MNIST, **options_of(variant))) == MLP_ORDERS[variant].split()


@pytest.mark.parametrize("variant", CNN_GROUPS)
def test_the_cnn_runs_its_layers_in_the_thesis_order(variant: str) -> None:
    groups = " ".join(CNN_GROUPS[variant].format(g=g) for g in range(1, 6))
    assert names(build("cnn", *MNIST, **options_of(variant))) == f"{groups} {CNN_ENDS[variant]}".split()


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_each_name_stands_for_its_type(architecture: str, position: str) -> None:
    net = build(architecture, *CIFAR10, activation="elu", batch_norm=True, norm_position=position, dropout=0.5)
    types = {
        r"flatten": nn.Flatten,
        r"conv\d_\d": nn.Conv2d,
        r"norm\d_\d": nn.BatchNorm2d,
        r"norm(_fc)?\d": nn.BatchNorm1d,
        r"act(\d|\d_\d|_fc\d)": nn.ELU,
        r"drop(\d|_fc)": nn.Dropout,
        r"pool\d": nn.MaxPool2d,
        r"fc\d|logits": nn.Linear,
    }
    for name, module in net.named_children():
        (expected,) = [type_ for pattern, type_ in types.items() if re.fullmatch(pattern, name)]
        assert type(module) is expected, name


def test_convolutions_and_pooling_have_the_settings_of_section_6_2_2() -> None:
    net = build("cnn", *CIFAR10)
    convolutions = [module for module in net if isinstance(module, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]
    assert {(c.kernel_size, c.padding, c.stride) for c in convolutions} == {((3, 3), (1, 1), (1, 1))}
    assert {(p.kernel_size, p.stride) for p in net if isinstance(p, nn.MaxPool2d)} == {(2, 2)}


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_only_layers_with_batch_norm_right_after_them_lack_a_bias(architecture: str) -> None:
    for variant in ("vanilla", "before+dropout", "after+dropout"):
        children = list(build(architecture, *MNIST, **options_of(variant)))
        followed = 0
        for module, following in itertools.pairwise([*children, nn.Identity()]):
            if isinstance(module, nn.Linear | nn.Conv2d):
                normed = isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d)
                assert (module.bias is None) == normed
                followed += normed
        hidden = 3 if architecture == "mlp" else 12
        assert followed == (hidden if variant.startswith("before") else 0)


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_dropout_is_the_probability_of_dropping(architecture: str) -> None:
    net = build(architecture, *MNIST, dropout=0.2)
    rates = [module.p for module in net if isinstance(module, nn.Dropout)]
    assert rates == [0.2] * (2 if architecture == "mlp" else 6)


@pytest.mark.parametrize("variant", ["vanilla", "before", "after+dropout"])
@pytest.mark.parametrize("shape", [MNIST, CIFAR100])
@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_logits_come_out_one_row_per_image(architecture: str, shape: tuple[Any, ...], variant: str) -> None:
    channels, size, classes = shape
    net = build(architecture, *shape, **options_of(variant))
    assert net(torch.empty(4, channels, *size, device="meta")).shape == (4, classes)


@pytest.mark.parametrize(("size", "features"), [((32, 32), 512), ((64, 96), 512 * 2 * 3), ((63, 33), 512)])
def test_larger_images_widen_the_first_linear_layer_of_the_cnn(size: tuple[int, int], features: int) -> None:
    net = build("cnn", 3, size, 10)
    assert net.get_submodule("fc1").in_features == features
    assert net(torch.empty(2, 3, *size, device="meta")).shape == (2, 10)


def test_the_mlp_takes_any_image_size() -> None:
    assert build_net("mlp", 1, (8, 5), 2)(torch.zeros(3, 1, 8, 5)).shape == (3, 2)


def test_the_outputs_are_logits_and_not_probabilities() -> None:
    torch.manual_seed(0)
    net = build_net("mlp", *MNIST)
    x = torch.randn(5, 1, 32, 32)
    hidden: Tensor = net[:-1](x)
    torch.testing.assert_close(net(x), hidden @ net.logits.weight.T + net.logits.bias)


def test_every_parameter_of_a_real_cnn_gets_a_gradient() -> None:
    torch.manual_seed(0)
    net = build_net("cnn", *MNIST, batch_norm=True, dropout=0.5)
    loss = nn.functional.cross_entropy(net(torch.randn(4, 1, 32, 32)), torch.arange(4))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in net.parameters())


def test_each_builder_builds_what_build_net_dispatches_to() -> None:
    options: dict[str, Any] = {"activation": "tanh", "batch_norm": True, "norm_position": "after", "dropout": 0.1}
    with torch.device("meta"):
        assert repr(build_mlp(*CIFAR10, HiddenStyle(**options))) == repr(build_net("mlp", *CIFAR10, **options))
        assert repr(build_cnn(*CIFAR10, HiddenStyle(**options))) == repr(build_net("cnn", *CIFAR10, **options))


def test_the_literal_of_activations_equals_the_table() -> None:
    assert get_args(ActivationName) == ACTIVATIONS
    assert len(ACTIVATIONS) == 15


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_builds_fresh_and_not_in_place(name: ActivationName) -> None:
    module = make_activation(name)
    assert module is not make_activation(name)
    assert not getattr(module, "inplace", False)
    x = torch.linspace(-4, 4, 9)
    kept = x.clone()
    y = module(x)
    assert y.shape == x.shape
    assert torch.equal(x, kept)
    assert torch.isfinite(y).all()
    for architecture in ("mlp", "cnn"):
        activations = [m for m in build(architecture, *MNIST, activation=name) if type(m) is type(module)]
        assert len(set(map(id, activations))) == (3 if architecture == "mlp" else 12)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architecture": "vgg"}, "architecture 'vgg' is unknown. Choose one of: mlp, cnn."),
        ({"activation": "rellu"}, "activation 'rellu' is unknown. Choose one of: relu, leaky_relu, "),
        ({"norm_position": "between"}, "norm_position 'between' is unknown. Choose one of: before, after."),
        ({"dropout": 1.0}, "dropout is 1.0, but must be at least 0 and less than 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"num_classes": 1}, "num_classes is 1, but must be 2 or more"),
        ({"in_channels": 0}, "in_channels is 0, but must be 1 or more"),
        ({"image_size": (32, 0)}, "image_size is 0, but must be 1 or more"),
    ],
)
@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_a_bad_argument_is_told_with_what_would_be_right(architecture: str, change: dict[str, Any], told: str) -> None:
    arguments = {"architecture": architecture, "in_channels": 1, "image_size": SIZE, "num_classes": 10, **change}
    with pytest.raises(InputError, match=re.escape(told)):
        build_net(**arguments)


@pytest.mark.parametrize("size", [(31, 32), (32, 31), (8, 8)])
def test_the_cnn_refuses_images_too_small_to_pool_five_times(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"{size[0]}x{size[1]} pixels.*32 or more.*mlp"):
        build_net("cnn", 1, size, 10)


CONFIGS = Path(__file__).parents[2] / "configs"

# Chapter 7: each experiment's section within 7.1 (MLP) and 7.2 (CNN), and the one thing that it changes.
EXPERIMENTS: dict[str, tuple[int, dict[str, Any]]] = {
    "relu": (1, {"activation": "relu"}),
    "sigmoid": (1, {"activation": "sigmoid"}),
    "elu": (1, {"activation": "elu"}),
    "lr_high": (2, {"lr": 0.1}),
    "lr_low": (2, {"lr": 0.001}),
    "init_high": (3, {"init": "normal", "init_std": 1.0}),
    "init_low": (3, {"init": "normal", "init_std": 0.0001}),
    "dropout": (4, {"dropout": 0.5}),
    "weight_decay": (4, {"weight_decay": 0.0005}),
}
NET_KEYS = {"activation", "dropout"}  # of the changes, those that build_net takes


def test_there_are_exactly_the_eighteen_experiments() -> None:
    expected = {f"{a}_{experiment}.yaml" for a in ("mlp", "cnn") for experiment in EXPERIMENTS}
    assert {path.name for path in CONFIGS.iterdir()} == expected
    assert len(expected) == 18


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_changes_what_the_thesis_says_and_builds(path: Path) -> None:
    architecture, _, experiment = path.stem.partition("_")
    section, change = EXPERIMENTS[experiment]
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# Thesis, section 7.{1 if architecture == 'mlp' else 2}.{section}, ")
    assert yaml.safe_load(text) == {"model": {"architecture": architecture, **change}}

    net = build(architecture, *MNIST, **{key: value for key, value in change.items() if key in NET_KEYS})
    initialize(net, change.get("init", "auto"), change.get("activation", "relu"), change.get("init_std"))
