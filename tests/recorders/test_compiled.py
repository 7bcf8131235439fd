"""Recording in compiled code: at most two graphs more, no graph breaks, the same weights, the values of eager code."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab_callbacks import ActivationMonitor, BatchNormMonitor, GradientMonitor, TrainingDiagnosis
from tests.callbacks.small_runs import Each, Module, hooks_of, loader, trainer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch's own, of blocks that are compiled one by one
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(6, 6), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.act(self.fc(x))
        return out


def deep() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.BatchNorm1d(6), *(Block() for _ in range(10)), nn.Linear(6, 3))


def slowly(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)


OPTIONS: dict[str, Any] = {"backend": "eager", "fullgraph": True}


def whole(net: nn.Sequential) -> nn.Module:
    compiled: Any = torch.compile(net, **OPTIONS)
    return compiled  # type: ignore[no-any-return]


def in_place(net: nn.Sequential) -> nn.Module:
    net.compile(**OPTIONS)
    return net


def by_regions(net: nn.Sequential) -> nn.Module:
    """More equal blocks than torch compiles anew of one code, which is 8."""
    for block in net[1:-1]:
        block.compile(**OPTIONS)
    return net


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def fit(compiled: Callable[[nn.Sequential], nn.Module], *callbacks: Any) -> tuple[int, list[Tensor]]:
    """The number of graphs, and the weights in the end; the last batch of an epoch is smaller."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = Module(compiled(deep()), slowly)
    trainer(*callbacks, max_epochs=2).fit(model, loader(60), loader(8))
    assert not counters["graph_break"]
    assert not counters["unimplemented"]
    assert hooks_of(model) == []
    return counters["stats"]["unique_graphs"], [weight.detach() for weight in model.parameters()]


INTERVALS: dict[str, Callable[[], list[Any]]] = {
    "all at unlike intervals": lambda: [
        *(GradientMonitor(2), ActivationMonitor(3), BatchNormMonitor(5)),
        TrainingDiagnosis(1, 7, summary=False),
    ],
    "dead units of every step": lambda: [ActivationMonitor(3, exact_dead=True), TrainingDiagnosis(summary=False)],
}


@pytest.mark.parametrize("compiled", [whole, in_place, by_regions], ids=lambda make: make.__name__)
def test_two_graphs_more_at_most_and_the_same_weights_and_values(compiled: Any) -> None:
    plain, weights = fit(compiled)
    assert all(bool(weight.isfinite().all()) for weight in weights)
    eager = Each(ActivationMonitor(3))
    trainer(eager.monitor, eager, max_epochs=2).fit(Module(deep(), slowly), loader(60))
    for make in INTERVALS.values():
        callbacks = make()
        each = Each(next(one for one in callbacks if isinstance(one, ActivationMonitor)))
        graphs, same = fit(compiled, *callbacks, each)
        assert graphs <= plain + 2
        assert all(torch.equal(one, other) for one, other in zip(weights, same, strict=True))
        for record, expected in zip(each.records, eager.records, strict=True):
            assert record == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_what_ran_compiled_before_fit_and_has_no_hooks_is_named() -> None:
    net = whole(deep())
    net(torch.randn(8, 6))
    with pytest.warns(UserWarning, match=r"recorded nothing: .*ran compiled before training began \(net\)"):
        trainer(ActivationMonitor()).fit(Module(net), loader())
