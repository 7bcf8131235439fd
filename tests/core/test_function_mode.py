"""The function mode sees calls while it is on, and disturbs nothing: other modes, compilers, copies, threads."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from bnlab_callbacks.core.function_mode import FunctionMode


class Log:
    """Names of the functions that were called, and the losses of backward passes."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.losses: list[float] = []

    def called(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        assert torch.ones(2).sum() == 2  # is not seen itself
        self.names.append(function.__name__)

    def backward(self, losses: Sequence[Tensor]) -> None:
        self.losses += [float(loss.detach()) for loss in losses]


class Other(TorchFunctionMode):
    """Somebody else's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.fixture
def mode() -> Iterator[FunctionMode]:
    made = FunctionMode()
    made.subscribers.append(Log())
    yield made
    made.forget()
    assert stack() == []


def log_of(mode: FunctionMode) -> Log:
    (log,) = mode.subscribers
    assert isinstance(log, Log)
    return log


def stack() -> list[Any]:
    return list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU())


def test_calls_and_both_ways_to_begin_a_backward_pass(mode: FunctionMode) -> None:
    net, x = small(), torch.ones(4, 2)
    net(x)
    mode.enter()
    mode.enter()
    loss = F.mse_loss(net(x), torch.zeros(4, 3))
    assert loss.shape == ()  # properties are not shown
    loss.backward()
    torch.autograd.backward([net(x).sum()])
    mode.leave()
    mode.leave()
    net(x)
    assert log_of(mode).names == ["linear", "relu", "zeros", "mse_loss", "linear", "relu", "sum"]
    assert log_of(mode).losses[0] == float(loss.detach())
    assert len(log_of(mode).losses) == 2
    assert mode.failure is None


def test_an_error_in_a_subscriber_is_noted_and_the_call_goes_on(mode: FunctionMode) -> None:
    class Broken(Log):
        def called(self, *given: Any) -> None:
            raise RuntimeError("broken")

    mode.subscribers[:] = [Broken()]
    mode.enter()
    assert torch.ones(3).sum() == 3
    mode.leave()
    assert mode.failure == "RuntimeError: broken"


def test_it_comes_and_goes_beneath_the_modes_of_others(mode: FunctionMode) -> None:
    mode.enter()
    other = Other()
    with other:
        mode.leave()
        assert stack() == [other]
        mode.enter(again=True)
        assert stack() == [mode, other]
    assert stack() == [mode]
    with torch.device("cpu"):
        mode.leave()
    assert stack() == []


def test_a_checkpointed_block_s_repetition_is_not_seen(mode: FunctionMode) -> None:
    net = small()
    mode.enter()
    out = checkpoint(net, torch.ones(4, 2), use_reentrant=False)
    before = len(log_of(mode).names)
    out.sum().backward()
    mode.leave()
    assert log_of(mode).names[before:] == ["sum"]


def test_copies_and_other_threads_see_nothing(mode: FunctionMode) -> None:
    for twin in (copy.deepcopy(mode), pickle.loads(pickle.dumps(mode))):
        assert (twin.subscribers, twin.on) == ([], False)
    mode.enter()
    thread = threading.Thread(target=lambda: torch.ones(2))
    thread.start()
    thread.join()
    with torch.inference_mode():
        torch.ones(2).mul(2)
    mode.leave()
    assert log_of(mode).names[-2:] == ["ones", "mul"]
    assert log_of(mode).names.count("ones") == 1


def test_attention_in_evaluation_mode_keeps_its_kernel(mode: FunctionMode) -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    mode.watch(block)
    mode.enter()
    assert mode.on
    mode.leave()
    block.eval()
    mode.enter()
    assert not mode.on


def test_compiled_parts_are_compiled_once_and_the_rest_is_seen(mode: FunctionMode) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net = nn.Sequential(torch.compile(small(), backend="eager"), nn.Linear(3, 1))  # type: ignore[arg-type]
    mode.watch(net)
    for step in range(4):
        if step % 2:
            mode.enter()
        net(torch.ones(4, 2)).sum().backward()
        mode.leave()
    assert [name for name in log_of(mode).names if name != "ones"] == ["linear", "sum"] * 2
    assert torch._dynamo.utils.counters["frames"]["total"] == 1
    torch._dynamo.reset()


def test_a_model_compiled_in_place_is_left_alone(mode: FunctionMode) -> None:
    net = small()
    net.compile(backend="eager")
    mode.watch(net)
    mode.enter()
    assert not mode.on
