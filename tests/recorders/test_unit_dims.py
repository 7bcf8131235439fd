"""Units lie where the layer that produced a tensor puts them, wherever the net moves them afterwards."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.recorders.test_functional_activations import Run


class Net(nn.Module):
    """Layers of all kinds, and what is given as the way through them."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.relu = nn.ReLU()  # before all layers: the order of definition tells nothing
        self.fc = nn.Linear(6, 5)
        self.conv, self.conv1, self.up = nn.Conv2d(6, 5, 1), nn.Conv1d(6, 5, 1), nn.ConvTranspose2d(6, 5, 1)
        self.lstm, self.norm = nn.LSTM(6, 5, batch_first=True), nn.BatchNorm1d(5)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.gate = nn.Linear(5, 5)
        self.way = way

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.way(self, *inputs)


WAYS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], int, int]] = {
    # the way, the shape of its input, units, the dimension in which they lie at the end
    "features": (lambda net, x: F.relu(net.fc(x)), (7, 6), 5, 1),
    "tokens": (lambda net, x: F.relu(net.fc(x)), (7, 3, 6), 5, 2),
    "a module, tokens": (lambda net, x: net.relu(net.fc(x)), (7, 3, 6), 5, 2),
    "pictures": (lambda net, x: F.relu(net.conv(x)), (7, 6, 2, 3), 5, 1),
    "a module, pictures": (lambda net, x: net.relu(net.conv(x)), (7, 6, 2, 3), 5, 1),
    "one picture": (lambda net, x: torch.relu(net.conv(x)), (6, 2, 3), 5, 0),
    "series": (lambda net, x: F.relu(net.conv1(x)), (7, 6, 3), 5, 1),
    "channels last": (lambda net, x: F.relu(net.conv(x.to(memory_format=torch.channels_last))), (7, 6, 2, 3), 5, 1),
    "transposed convolution": (lambda net, x: net.up(x).relu_(), (7, 6, 2, 3), 5, 1),
    "features that move to the front": (lambda net, x: F.relu(net.fc(x).transpose(1, 2)), (7, 3, 6), 5, 1),
    "channels that move to the back": (lambda net, x: F.relu(net.conv(x).permute(0, 2, 3, 1)), (7, 6, 2, 3), 5, 3),
    "by method": (lambda net, x: F.relu(net.conv(x).flatten(2).transpose(-1, -2)), (7, 6, 2, 3), 5, 2),
    "pooled": (lambda net, x: F.relu(F.adaptive_avg_pool2d(net.conv(x), 1).flatten(1)), (7, 6, 2, 3), 5, 1),
    "mean over positions": (lambda net, x: F.relu(net.conv(x).mean((2, 3))), (7, 6, 2, 3), 5, 1),
    "rows joined": (lambda net, x: F.relu(net.fc(x).reshape(-1, 5)), (7, 3, 6), 5, 1),
    "all flattened": (lambda net, x: F.relu(net.conv(x).flatten(1)), (7, 6, 2, 3), 30, 1),
    "a norm between": (lambda net, x: F.relu(net.norm(net.fc(x))), (7, 6), 5, 1),
    "recurrent": (lambda net, x: F.relu(net.lstm(x)[0] - 0.1), (7, 3, 6), 5, 2),
    "attention": (lambda net, x: F.relu(net.attention(x, x, x)[0]), (7, 3, 6), 6, 2),
    "another layer ran since": (
        lambda net, x: F.relu((y := net.conv(x)) * net.gate(y.mean((2, 3)))[..., None, None]),
        *((7, 6, 2, 3), 5, 1),
    ),
    "residual": (lambda net, x: F.relu(net.fc(x) + net.conv1(x.transpose(1, 2)).transpose(1, 2)), (7, 3, 6), 5, 2),
    "by a property, which is not seen": (lambda net, x: F.relu(net.fc(x).mT), (7, 3, 6), 5, 1),
}


def magnitudes_of(call: Any) -> Tensor:
    """The mean magnitude of each unit: which dimension is theirs."""
    magnitudes: Tensor = call.sums.block.unit_abs[call.sums.row]
    return magnitudes


@pytest.mark.parametrize("name", WAYS)
def test_units_are_those_of_the_layer_that_produced_them(name: str) -> None:
    way, shape, units, dim = WAYS[name]
    net = Net(way)
    run = Run(net)
    outputs: list[Tensor] = []
    x = torch.randn(*shape)
    ((_, call),) = run.step(lambda: outputs.append(net(x))).items()
    assert outputs[0].shape[dim] == units
    magnitudes = outputs[0].detach().double().abs().movedim(dim, 0).flatten(1).mean(1)
    assert magnitudes_of(call).tolist() == pytest.approx(magnitudes.tolist(), rel=1e-12)


def test_nodes_of_a_graph_are_samples() -> None:
    """As message passing gathers and scatters them."""

    def passing(net: Any, x: Tensor, edges: Tensor) -> Tensor:
        x = net.fc(x)
        gathered = x.index_select(0, edges[0])
        return F.relu(torch.zeros_like(x).scatter_add_(0, edges[1][:, None].expand_as(gathered), gathered))

    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    net = Net(passing)
    ((name, call),) = Run(net).step(lambda: net(torch.randn(4, 6), edges)).items()
    assert (name, call.samples, len(magnitudes_of(call))) == ("relu.2", 4, 5)


def test_packed_sequences_have_their_features_as_units() -> None:
    def packed(net: Any, x: Tensor) -> Tensor:
        sequence = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2, 1]), batch_first=True)
        data: Tensor = net.lstm(sequence)[0].data
        return F.relu(data)

    net = Net(packed)
    (call,) = Run(net).step(lambda: net(torch.randn(3, 3, 6))).values()
    assert (call.numel, len(magnitudes_of(call))) == (6 * 5, 5)
