"""All three callbacks on real nets: what they see, and that training does not notice them."""

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import DenseNet, VisionTransformer, densenet121, mobilenet_v3_small, resnet18, vit_b_16

from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor
from tests.callbacks.small_runs import Module, data, hooks_of, loader, trainer

pytestmark = pytest.mark.usefixtures("one_thread")

Records = tuple[dict[str, float], dict[str, float]]
IMAGE = (3, 32, 32)
WATCHED = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid)
GRADIENTS = ("grad_mean_abs", "grad_mean", "grad_rms", "grad_zero_frac", "grad_nonfinite", "update_ratio")
EVERY = ("act_mean", "act_std", "act_absmax", "act_outlier", "act_kurtosis", "dormant_frac")
RECTIFIERS = (*EVERY, "zero_frac", "dead_frac", "dead_samples")


def fit(make: Callable[[], pl.LightningModule], steps: int = 3) -> Records:
    """The last records of both monitors, all finite; training ends with the same weights as without callbacks."""
    finals = []
    gradients, activations, timer = GradientMonitor(1), ActivationMonitor(1), EpochTimer()
    for callbacks in ([], [gradients, activations, timer]):
        torch.manual_seed(3)
        model = make()
        trainer(*callbacks).fit(model, loader(4 * steps, 4, IMAGE))
        assert hooks_of(model) == []
        finals.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(finals[0].values(), finals[1].values(), strict=True))
    assert all(math.isfinite(value) for values in (gradients.latest, activations.latest) for value in values.values())
    assert all(value == 0 for tag, value in gradients.latest.items() if tag.startswith("grad_nonfinite"))
    assert set(timer.latest) == {"time/train_s", "time/val_s", "time/epoch_s", "time/samples_per_s"}
    return gradients.latest, activations.latest


def layers(record: dict[str, float], quantity: str) -> list[str]:
    """`<NN>_<layer>` of the layers that have this quantity, in the order of their numbers."""
    return sorted(tag.partition("/")[2] for tag in record if tag.startswith(f"{quantity}/"))


def numbered(names: list[str]) -> list[str]:
    width = 3 if len(names) > 100 else 2
    return [f"{place:0{width}d}_net.{name}" for place, name in enumerate(names)]


def calls(net: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """Modules of these kinds in the order in which one forward pass runs them, a repeated one as `<name>.2`."""
    net = copy.deepcopy(net).train()
    names: list[str] = []
    for name, module in net.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda module, args, output, name=name: names.append(name))
    net(data(4, IMAGE)[0])
    seen: Counter[str] = Counter()
    again = []
    for name in names:
        seen[name] += 1
        again.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return again


def small_densenet() -> nn.Module:
    return DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=3)


@pytest.mark.parametrize(
    ("net", "weights", "activations", "functions"),
    [
        (lambda: resnet18(num_classes=3), 21, 17, []),
        (small_densenet, 11, 10, ["relu"]),
        (lambda: densenet121(num_classes=3), 121, 120, ["relu"]),
        (lambda: mobilenet_v3_small(num_classes=3), 54, 42, []),
    ],
    ids=["resnet18", "densenet", "densenet121", "mobilenet_v3_small"],
)
def test_convolutional_nets_have_a_tag_for_each_weight_and_call(
    net: Callable[[], nn.Module], weights: int, activations: int, functions: list[str]
) -> None:
    """And for the function that DenseNets call behind their last norm."""
    gradients, outputs = fit(lambda: Module(net(), lambda p: torch.optim.SGD(p, lr=0.01)))
    expected = numbered(calls(net(), (nn.Conv2d, nn.Linear)))
    assert len(expected) == weights
    for quantity in GRADIENTS:
        assert layers(gradients, quantity) == expected
    modules = calls(net(), WATCHED)
    assert len(modules) == activations
    expected = numbered([*modules, *functions])
    for quantity in EVERY:
        assert layers(outputs, quantity) == expected


def test_resnets_shared_in_place_relu_is_seen_at_each_call() -> None:
    _, outputs = fit(lambda: Module(resnet18(num_classes=3)), steps=2)
    assert layers(outputs, "dead_frac")[:4] == numbered(["relu", "layer1.0.relu", "layer1.0.relu.2", "layer1.1.relu"])
    assert layers(outputs, "dead_frac")[-1] == "16_net.layer4.1.relu.2"
    assert {tag.partition("/")[0] for tag in outputs} == set(RECTIFIERS)
    assert {value for tag, value in outputs.items() if tag.startswith("dead_samples/")} == {8}


def test_mobilenets_activations_have_the_quantities_of_their_kinds() -> None:
    """In-place hard swish without saturation; the squeeze's ReLU with units; the gate's hard sigmoid with two sides."""
    _, outputs = fit(lambda: Module(mobilenet_v3_small(num_classes=3)), steps=2)
    swish, relu, gate = (
        "00_net.features.0.2",
        "02_net.features.1.block.1.activation",
        "03_net.features.1.block.1.scale_",
    )
    by_layer = {
        layer: {tag.partition("/")[0] for tag in outputs if tag.partition("/")[2] == layer}
        for layer in (swish, relu, f"{gate}activation")
    }
    moments = set(EVERY)
    assert by_layer == {
        swish: moments,
        relu: set(RECTIFIERS),
        f"{gate}activation": moments | {"sat_frac", "sat_lo", "sat_hi"},
    }
    assert 0 <= outputs[f"act_mean/{gate}activation"] <= outputs[f"act_absmax/{gate}activation"] <= 1


def vit_layers(blocks: int) -> list[str]:
    """The class token is the root's own; attention uses its output projection's weight itself, in its own place."""
    parts = ("self_attention.in_proj_weight", "self_attention.out_proj", "mlp.0", "mlp.3")
    inner = [f"encoder.layers.encoder_layer_{block}.{part}" for block in range(blocks) for part in parts]
    return ["class_token", "conv_proj", "encoder.pos_embedding", *inner, "heads.head"]


@pytest.mark.parametrize(
    ("net", "blocks", "steps"),
    [
        (lambda: VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=3), 2, 3),
        pytest.param(lambda: vit_b_16(image_size=32, num_classes=3), 12, 3, marks=pytest.mark.slow),
    ],
    ids=["small", "vit_b_16"],
)
def test_vision_transformers(net: Callable[[], nn.Module], blocks: int, steps: int) -> None:
    gradients, outputs = fit(lambda: Module(net(), lambda p: torch.optim.SGD(p, lr=0.01)), steps)
    for quantity in GRADIENTS:
        assert layers(gradients, quantity) == numbered(vit_layers(blocks))
    gelus = [f"encoder.layers.encoder_layer_{block}.mlp.1" for block in range(blocks)]
    assert layers(outputs, "act_mean") == numbered(gelus)
    assert {tag.partition("/")[0] for tag in outputs} == set(EVERY)


def rows(x: Tensor) -> Tensor:
    """(N, 3, 32, 32) → (N, 32, 96): an image as a sequence of its rows."""
    return x.transpose(1, 2).flatten(2)


class Lstm(nn.Module):
    """The head's layers are defined in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu, self.hidden = nn.Linear(16, 3), nn.ReLU(), nn.Linear(16, 16)
        self.lstm = nn.LSTM(96, 16, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.relu(self.hidden(self.lstm(rows(x))[0][:, -1])))
        return out


def test_an_lstm_has_its_own_layers_weights_and_an_mlps_head() -> None:
    gradients, outputs = fit(lambda: Module(Lstm()))
    weights = [f"lstm.weight_{kind}_l{layer}" for layer in (0, 1) for kind in ("ih", "hh")]
    for quantity in GRADIENTS:
        assert layers(gradients, quantity) == numbered([*weights, "hidden", "fc"])
    for quantity in RECTIFIERS:
        assert layers(outputs, quantity) == ["00_net.relu"]


class Encoder(nn.Module):
    """A transformer on an image's rows."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(96, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, activation=activation)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.fc = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.encoder(self.embed(rows(x))).mean(1))
        return out


ENCODER_LAYERS = [
    "embed",
    *(
        f"encoder.layers.{block}.{part}"
        for block in (0, 1)
        for part in ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")
    ),
    "fc",
]


@pytest.mark.parametrize("activation", ["relu", nn.ReLU()], ids=["function", "module"])
def test_a_transformer_encoders_activations_are_seen_and_their_units_are_the_features(activation: Any) -> None:
    """The default is the function `F.relu`."""
    gradients, outputs = fit(lambda: Module(Encoder(activation)))
    name = "relu" if activation == "relu" else "activation"
    assert layers(gradients, "grad_rms") == numbered(ENCODER_LAYERS)
    for quantity in RECTIFIERS:
        assert layers(outputs, quantity) == numbered([f"encoder.layers.{block}.{name}" for block in (0, 1)])
    for tag, value in outputs.items():
        if tag.startswith("dead_frac/"):
            assert value * 64 == int(value * 64)


class Gan(pl.LightningModule):
    """Images; the usual two steps, each with the other net's parameters switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Sequential(
            *(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.LeakyReLU(0.2, inplace=True)),
            *(nn.Flatten(), nn.Linear(256, 1)),
        )
        self.generator = nn.Sequential(
            *(nn.Linear(8, 256), nn.Unflatten(1, (4, 8, 8)), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            *(nn.ConvTranspose2d(4, 3, 4, 4), nn.Tanh()),
        )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        critic, generator = self.optimizers()
        z = torch.randn(len(x), 8)
        self.toggle_optimizer(critic)
        loss = F.softplus(-self.critic(x)).mean() + F.softplus(self.critic(self.generator(z).detach())).mean()
        critic.zero_grad()
        self.manual_backward(loss)
        critic.step()
        self.untoggle_optimizer(critic)
        self.toggle_optimizer(generator)
        generator.zero_grad()
        self.manual_backward(F.softplus(-self.critic(self.generator(z))).mean())
        generator.step()
        self.untoggle_optimizer(generator)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (self.critic, self.generator)]


def test_a_gan_has_both_nets_layers_and_all_passes_of_a_step() -> None:
    gradients, outputs = fit(Gan)
    for quantity in GRADIENTS:
        assert layers(gradients, quantity) == ["00_critic.0", "01_critic.4", "02_generator.0", "03_generator.4"]
    assert layers(outputs, "act_mean") == [
        *("00_critic.2", "01_generator.3", "02_generator.5", "03_critic.2.2"),
        *("04_generator.3.2", "05_generator.5.2", "06_critic.2.3"),
    ]
    assert layers(outputs, "dead_frac") == ["01_generator.3", "04_generator.3.2"]
    assert layers(outputs, "sat_hi") == ["02_generator.5", "05_generator.5.2"]
    for quantity in ("act_mean", "act_std", "zero_frac"):  # the critic's step has not moved the generator
        assert outputs[f"{quantity}/04_generator.3.2"] == outputs[f"{quantity}/01_generator.3"]
