"""What layers compute with where they hold something else: pruned and weight-normed ones, beside autograd."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from bnlab_callbacks.core.weights import Weight, find_weights, lazy_layers

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated", "ignore:Implicit dimension")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", amount=0.5)
    return layer


NORMED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "by rows": parametrizations.weight_norm,
    "by columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "as a whole": lambda layer: parametrizations.weight_norm(layer, dim=None),  # type: ignore[arg-type]
    "by hooks": nn.utils.weight_norm,
    "by hooks, as a whole": lambda layer: nn.utils.weight_norm(layer, dim=None),  # type: ignore[arg-type]
    "pruned": pruned,
}


def the_weight(layer: nn.Module) -> Weight:
    (weight,) = find_weights(nn.Sequential(layer))
    return weight


def forward(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, layer.bias)
    return nn.functional.conv2d(x, weight, layer.bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", NORMED)
@pytest.mark.parametrize("convolution", [False, True])
def test_values_and_gradient_are_those_of_the_tensor_that_is_computed_with(kind: str, convolution: bool) -> None:
    plain: nn.Module = nn.Conv2d(2, 4, 3) if convolution else nn.Linear(6, 4)
    layer = NORMED[kind](plain.double())
    x = torch.randn(5, 2, 4, 4).double() if convolution else torch.randn(5, 6).double()
    layer(x).pow(3).sum().backward()
    weight = layer.weight.detach().clone().requires_grad_()  # type: ignore[operator, union-attr]
    forward(layer, weight, x).pow(3).sum().backward()
    assert weight.grad is not None
    found = the_weight(layer)
    assert found.layer == "0"
    assert found.has_gradient
    torch.testing.assert_close(found.values, weight.detach(), rtol=0, atol=0)
    kept = weight != 0 if kind == "pruned" else torch.ones_like(weight)
    torch.testing.assert_close(found.gradient, weight.grad * kept, rtol=1e-12, atol=1e-12)


def test_of_a_weight_norm_half_frozen_the_part_that_is_trained_counts() -> None:
    layer = parametrizations.weight_norm(nn.Linear(6, 4))
    inner: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    inner.original1.requires_grad_(False)
    found = the_weight(layer)
    assert found.trained
    layer(torch.randn(5, 6)).pow(2).sum().backward()
    assert found.has_gradient
    weight = layer.weight.detach()  # type: ignore[operator, union-attr]
    cosines = nn.functional.cosine_similarity(found.gradient, weight)
    torch.testing.assert_close(cosines.abs(), torch.ones(4))


def test_a_magnitude_of_0_leaves_the_part_along_it() -> None:
    layer = parametrizations.weight_norm(nn.Linear(3, 2))
    inner: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    inner.original0.data[0] = 0.0
    layer(torch.randn(5, 3)).sum().backward()
    assert bool(the_weight(layer).gradient.isfinite().all())


def test_a_layer_keeps_its_name_when_it_is_pruned_and_when_that_is_over() -> None:
    layer = nn.Linear(3, 2)
    net = nn.Sequential(layer)
    (before,) = find_weights(net)
    whole = layer.weight.detach().clone()
    prune.l1_unstructured(layer, "weight", amount=2)
    mask = layer.weight_mask
    (after,) = find_weights(net)
    assert (before.layer, after.layer) == ("0", "0")
    assert after.parameter is before.parameter
    for weight in (before, after):  # also the one that was found before
        torch.testing.assert_close(weight.values, whole * mask, rtol=0, atol=0)
    prune.remove(layer, "weight")
    (removed,) = find_weights(net)
    torch.testing.assert_close(removed.values, whole * mask, rtol=0, atol=0)


def test_other_parametrizations_have_their_layers_names_and_are_not_run() -> None:
    net = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(3, 3)),
        nn.utils.spectral_norm(nn.Linear(3, 3)),
        parametrizations.orthogonal(nn.Linear(3, 3)),
        parametrizations.weight_norm(nn.LSTM(3, 2), "weight_hh_l0"),
    )
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = find_weights(net)
    for weight in found:
        assert weight.values.shape == weight.parameter.shape
    assert [weight.layer for weight in found] == ["0", "1", "2", "3.weight_ih_l0", "3.weight_hh_l0"]
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_vectors_are_all_else_that_is_trained_under_names_of_their_own() -> None:
    normed = parametrizations.weight_norm(nn.Linear(2, 2))
    net = nn.ModuleDict({"fc": nn.Linear(3, 2), "norm": nn.LayerNorm(2), "v": normed})
    net.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    net["frozen"] = nn.Linear(2, 2).requires_grad_(False)
    found = find_weights(net, vectors=True)
    assert [weight.layer for weight in found if not weight.vector] == ["fc", "v"]
    vectors = ["scale", "fc.bias", "norm.weight", "norm.bias", "v.bias"]
    assert [weight.layer for weight in found if weight.vector] == vectors


class Wrapper(nn.Module):
    """Its path vanishes from names, as those of `torch.compile` do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner
        self.fc = nn.Linear(2, 2)


def test_names_are_unique_and_those_of_weights_do_not_depend_on_vectors() -> None:
    inner = nn.Module()
    inner.fc = nn.Linear(2, 2)
    net = nn.ModuleDict({"a": Wrapper(inner)})
    names = [weight.layer for weight in find_weights(net)]
    assert names == ["a.fc", "a.fc.2"]
    everything = find_weights(net, vectors=True)
    assert [weight.layer for weight in everything if not weight.vector] == names
    assert len({weight.layer for weight in everything}) == 4


def test_lazy_layers_are_named_before_they_have_a_shape() -> None:
    assert {"0", "0.weight"} <= set(lazy_layers(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))))
