"""The graph of a loss: which parameters multiply, and which linear layers are one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from bnlab_callbacks.diagnosis.watching.loss_graph import LossGraph

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(1)))


W, GAIN, VECTOR, FLAT = parameter(3, 4), parameter(5, 4), parameter(1, 4), parameter(12)


@pytest.mark.parametrize(
    ("output", "of", "multiplies"),
    [
        (lambda: F.linear(X, W), W, True),
        (lambda: F.linear(X, W, torch.ones(3)), W, True),
        (lambda: X @ W.T, W, True),
        (lambda: W @ X.T, W, True),
        (lambda: torch.einsum("ni,oi->no", X, W), W, True),
        (lambda: F.conv1d(X[:, :, None], W[:, :, None]), W, True),
        (lambda: F.embedding(torch.tensor([0, 2]), W), W, True),
        (lambda: F.linear(X, VECTOR), VECTOR, True),  # a single unit
        (lambda: F.linear(X, FLAT[:12].view(3, 4)), FLAT, True),
        (lambda: F.linear(X, W + 0.1 * torch.randn(3, 4)), W, True),  # the mean of sampled weights
        (lambda: F.linear(X, torch.randn(3, 4) * F.softplus(W)), W, False),  # their variance
        (lambda: F.linear(X * GAIN, torch.ones(3, 4)), GAIN, False),
        (lambda: F.linear(X + GAIN, torch.ones(3, 4)), GAIN, False),  # positions
        (lambda: F.linear(X * VECTOR, torch.ones(3, 4)), VECTOR, False),
        (lambda: (X * GAIN)[None] @ X.T[None].contiguous(), GAIN, False),
        (lambda: X[None] @ (X * GAIN)[None].transpose(1, 2), GAIN, False),  # a gain of attention's keys
        (lambda: torch.exp(W).sum(0) * X, W, False),
        (lambda: X, W, None),  # not there
    ],
)
def test_what_multiplies_is_seen_in_the_graph(output, of: nn.Parameter, multiplies: bool | None) -> None:  # type: ignore[no-untyped-def]
    graph = LossGraph(output().square().sum() if output().requires_grad else X.sum())
    assert graph.multiplies(of) is multiplies


def test_magnitudes_are_no_layers_and_directions_are() -> None:
    net = nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Tanh(), spectral_norm(nn.Linear(4, 4)))
    graph = LossGraph(net(X).sum())
    found = {name: graph.multiplies(weight) for name, weight in net.named_parameters() if weight.ndim > 1}
    assert found == {
        "0.parametrizations.weight.original0": False,
        "0.parametrizations.weight.original1": True,
        "2.parametrizations.weight.original": True,
    }


def test_inside_of_a_checkpoint_nothing_is_known() -> None:
    inputs = X.clone().requires_grad_()
    gain = parameter(5, 4)

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.exp()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad

    assert LossGraph(Own.apply(gain).sum()).multiplies(gain) is None  # type: ignore[no-untyped-call]
    hidden = checkpoint(lambda x: F.linear(x, W), inputs, use_reentrant=True)
    assert LossGraph(hidden.sum()).multiplies(W) is None


def test_of_a_part_of_a_graph_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab_callbacks.diagnosis.watching.loss_graph._MOST_NODES", 2)
    graph = LossGraph(F.linear(X, W).square().sum())
    assert graph.multiplies(W) is None
    assert not graph.holds(W)


def test_gains_are_multiplied_or_are_scales_of_norms() -> None:
    norm, gain = nn.LayerNorm(4), parameter(4)
    graph = LossGraph((norm(X) * gain + torch.zeros(4)).sum())
    assert graph.is_gain(gain)
    assert graph.is_gain(norm.weight)
    assert not graph.is_gain(norm.bias)
    assert not graph.is_gain(W)


def pairs(net: nn.Module, x: Tensor = X) -> list[tuple[str, str]]:
    linear = {name: part.weight for name, part in net.named_modules() if isinstance(part, nn.Linear)}
    return list(LossGraph(net(x).square().mean()).bare_pairs(linear))


def test_linear_layers_with_nothing_between_them() -> None:
    assert pairs(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))) == [("0", "1")]
    assert pairs(nn.Sequential(nn.Linear(4, 8), nn.Identity(), nn.Linear(8, 3)), X[:, None]) == [("0", "2")]
    assert pairs(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))) == []
    assert pairs(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))) == []
    assert pairs(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 8))) == []  # a matrix of rank 2


def test_a_function_between_them_is_seen_too() -> None:
    class Functional(nn.Module):
        def __init__(self, branch: bool) -> None:
            super().__init__()
            self.a, self.b, self.branch = nn.Linear(4, 8), nn.Linear(8, 8), branch

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            return self.b(hidden) + hidden if self.branch else self.b(torch.tanh(hidden))

    assert pairs(Functional(False)) == []
    assert pairs(Functional(True)) == []  # the first one's outputs go elsewhere too
