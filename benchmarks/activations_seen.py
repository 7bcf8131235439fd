"""Activations that are recorded in public nets: by hooks on modules alone, as now, and by an independent trace.

`python -m benchmarks.activations_seen [NAME…]` prints the table of docs/activations.md. Nets have random weights; what
is not installed is left out. The trace counts the activation kernels of one forward pass in a dispatch mode, which
knows neither modules nor names: a composite that is written with a tanh counts as that one tanh.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.core.shared import SharedRecorders
from bnlab_callbacks.recorders.activations import ActivationRecorder
from bnlab_callbacks.statistics.activations import ACTIVATIONS

_KERNELS = {
    *("relu", "leaky_relu", "_prelu_kernel", "prelu", "rrelu_with_noise", "elu", "gelu", "silu", "mish", "softplus"),
    *("sigmoid", "tanh", "log_sigmoid_forward", "hardtanh", "hardsigmoid", "hardswish", "threshold", "glu"),
    *("hardshrink", "softshrink", "special_expit"),
}


class Case(NamedTuple):
    """A net and what it is run on."""

    net: nn.Module
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}


class _Trace(TorchDispatchMode):
    """Counts activation kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._overloadpacket.__name__.rstrip("_") in _KERNELS
        return func(*args, **(kwargs or {}))


class _Reader:
    """Takes one step."""

    exact_dead = False

    def __init__(self) -> None:
        self.names: list[str] = []

    def due(self, moment: Moment, stream: str = "") -> bool:
        return True

    def mark(self, moment: Moment, stream: str = "") -> None:
        pass

    def wants(self, layer: str) -> bool:
        return True

    def take(self, moment: Moment, left: Any, seconds: float) -> None:
        self.names = [name for name, _ in left.calls]

    def recorder_failed(self, reason: str) -> None:
        raise RuntimeError(reason)


def seen(case: Case) -> tuple[int, int, int]:
    """How many activations hooks on modules, the recorder and the trace see in a forward pass in training mode."""
    net = case.net.train()
    fired: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, args, output: fired.append(module))
        for module in net.modules()
        if isinstance(module, ACTIVATIONS)
    ]
    with _Trace() as trace:
        net(*case.args, **case.kwargs)
    for handle in handles:
        handle.remove()
    reader = _Reader()
    recorder = SharedRecorders(Ranks()).join(ActivationRecorder, reader, net)
    recorder.begin_batch(Moment(0, 0), 0)
    net(*case.args, **case.kwargs)
    recorder.before_backward()
    recorder.end_batch(Moment(0, 0), 1)
    recorder.leave(reader)
    return len(fired), len(reader.names), trace.count


def _vision(name: str, size: int = 64, **options: Any) -> Case:
    from torchvision.models import get_model

    return Case(get_model(name, weights=None, **options), (torch.randn(2, 3, size, size),))


def _raft() -> Case:
    from torchvision.models.optical_flow import raft_small

    images = [torch.rand(1, 3, 128, 128) for _ in range(2)]
    return Case(raft_small(), images, {"num_flow_updates": 3})


def _hugging_face(model: str, config: str, words: bool = True, more: bool = False, **options: Any) -> Case:
    import transformers

    net = getattr(transformers, model)(getattr(transformers, config)(**options))
    ids = torch.randint(3, 90, (2, 12))
    if not words:
        return Case(net, (), {"pixel_values": torch.randn(2, 3, 32, 32)})
    return Case(net, (), {"input_ids": ids} | ({"decoder_input_ids": ids} if more else {}))


def _timm(name: str, size: int = 64) -> Case:
    import timm

    return Case(timm.create_model(name, pretrained=False), (torch.randn(2, 3, size, size),))


def _graph(name: str) -> Case:
    from torch_geometric.nn import models

    edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    return Case(getattr(models, name)(5, 8, 3, 2), (torch.randn(4, 5), edges))


class TemporalBlock(nn.Module):
    """A block of a temporal convolutional net, written as in darts."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.second(F.dropout(F.relu(self.first(x)), 0.1)))


class LeNet(nn.Module):
    """LeNet with functions, as torch-uncertainty and many courses write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        out: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))
        return out


class UNet(nn.Module):
    """Two levels, with functions."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.join, self.out = (
            nn.ConvTranspose2d(16, 8, 2, 2),
            nn.Conv2d(16, 8, 3, padding=1),
            nn.Conv2d(8, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down(x))
        low = self.middle(F.max_pool2d(skip, 2)).relu_()
        joined = torch.cat([skip, F.leaky_relu(self.up(low))], 1)
        return self.out(F.silu(self.join(joined))).sigmoid()


_SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_VIT = {"image_size": 32, "patch_size": 8} | {key: value for key, value in _SMALL.items() if key != "vocab_size"}
_GATED = {"decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"}

CASES: dict[str, Callable[[], Case]] = {
    "torchvision GoogLeNet": lambda: _vision("googlenet", init_weights=False),
    "torchvision Inception v3": lambda: _vision("inception_v3", 299, init_weights=False),
    "torchvision DenseNet-121": lambda: _vision("densenet121"),
    "torchvision ResNet-18": lambda: _vision("resnet18"),
    "torchvision Swin-T": lambda: _vision("swin_t"),
    "torchvision Swin-T v2": lambda: _vision("swin_v2_t"),
    "torchvision ViT-B/16": lambda: _vision("vit_b_16", 224),
    "torchvision RAFT (small)": _raft,
    "nn.Transformer": lambda: Case(
        nn.Transformer(32, 4, 2, 2, 64, batch_first=True), (torch.randn(2, 7, 32), torch.randn(2, 5, 32))
    ),
    "transformers BERT": lambda: _hugging_face("BertModel", "BertConfig", **_SMALL),
    "transformers GPT-2": lambda: _hugging_face("GPT2LMHeadModel", "GPT2Config", **_GPT),
    "transformers ViT": lambda: _hugging_face("ViTModel", "ViTConfig", words=False, **_VIT),
    "transformers T5": lambda: _hugging_face("T5Model", "T5Config", more=True, **_T5, decoder_start_token_id=0),
    "transformers T5, gated": lambda: _hugging_face("T5Model", "T5Config", more=True, **_T5, **_GATED),
    "transformers Llama": lambda: _hugging_face("LlamaModel", "LlamaConfig", **_SMALL),
    "transformers Mamba": lambda: _hugging_face(
        "MambaModel", "MambaConfig", vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8
    ),
    "timm ResNet-50": lambda: _timm("resnet50"),
    "timm ConvNeXt-T": lambda: _timm("convnext_tiny"),
    "timm EfficientNet-B0": lambda: _timm("efficientnet_b0"),
    "torch_geometric GCN": lambda: _graph("GCN"),
    "torch_geometric GAT": lambda: _graph("GAT"),
    "torch_geometric GIN": lambda: _graph("GIN"),
    "TCN, as in darts": lambda: Case(nn.Sequential(TemporalBlock(4, 1), TemporalBlock(4, 2)), (torch.randn(2, 4, 20),)),
    "LeNet, as in torch-uncertainty": lambda: Case(LeNet(), (torch.randn(2, 1, 28, 28),)),
    "U-Net": lambda: Case(UNet(), (torch.randn(2, 3, 16, 16),)),
    "nn.LSTM": lambda: Case(nn.LSTM(8, 8), (torch.randn(7, 2, 8),)),
}


def main(names: Sequence[str]) -> None:
    """Print the table, a line at a time."""
    warnings.filterwarnings("ignore")
    print("| net | modules alone | recorded | trace |\n|---|---|---|---|")
    for name, make in CASES.items():
        if names and not any(word.lower() in name.lower() for word in names):
            continue
        torch.manual_seed(0)
        try:
            case = make()
        except ImportError:
            continue
        before, after, trace = seen(case)
        print(f"| {name} | {before} | {after} | {trace} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
