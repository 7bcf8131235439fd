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
        self.failure: str | None = None
        self.modules: list[str] = []
        self.names: list[str] = []
        self.losses: list[float] = []

    def called(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        assert torch.ones(2).sum() == 2  # is not seen itself
        self.names.append(function.__name__)

    def backward(self, losses: Sequence[Tensor]) -> None:
        self.losses += [float(loss.detach()) for loss in losses]

    def entered(self, module: nn.Module) -> None:
        self.modules.append(f"+{type(module).__name__}")

    def left(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.modules.append(f"-{type(module).__name__}")


class Mode(FunctionMode):
    """One with a subscriber."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()

    def watch(self, model: nn.Module) -> None:
        self.quit(self.log)
        self.join(self.log, model)


class Other(TorchFunctionMode):
    """Somebody else's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.fixture
def mode() -> Iterator[Mode]:
    made = Mode()
    made.watch(nn.Identity())
    yield made
    made.quit(made.log)
    assert stack() == []


def stack() -> list[Any]:
    return list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU())


def test_calls_and_both_ways_to_begin_a_backward_pass(mode: Mode) -> None:
    net, x = small(), torch.ones(4, 2)
    net(x)
    mode.enter(mode.log)
    mode.enter(mode.log)
    loss = F.mse_loss(net(x), torch.zeros(4, 3))
    assert loss.shape == ()  # properties are not shown
    loss.backward()
    torch.autograd.backward([net(x).sum()])
    mode.leave(mode.log)
    mode.leave(mode.log)
    net(x)
    assert mode.log.names == ["linear", "relu", "zeros", "mse_loss", "linear", "relu", "sum"]
    assert mode.log.losses[0] == float(loss.detach())
    assert len(mode.log.losses) == 2
    assert mode.log.failure is None


def test_an_error_in_a_subscriber_is_noted_and_the_call_goes_on(mode: Mode) -> None:
    class Broken(Log):
        def called(self, *given: Any) -> None:
            raise RuntimeError("broken")

    broken = Broken()
    mode.join(broken, nn.Identity())
    mode.enter(broken)
    mode.enter(mode.log)
    assert torch.ones(3).sum() == 3
    mode.leave(mode.log)
    mode.quit(broken)
    assert broken.failure == "RuntimeError: broken"
    assert mode.log.failure is None
    assert mode.log.names[:2] == ["ones", "sum"]


def test_each_subscriber_sees_what_lies_between_its_own_enter_and_leave(mode: Mode) -> None:
    other = Log()
    mode.join(other, nn.Identity())
    mode.enter(mode.log)
    torch.zeros(1)
    mode.enter(other)
    torch.zeros(1).exp()
    mode.leave(mode.log)
    torch.zeros(1).cos()
    mode.quit(other)
    assert stack() == []
    torch.zeros(1).sin()
    assert mode.log.names == ["zeros", "zeros", "exp"]
    assert other.names == ["zeros", "exp", "zeros", "cos"]


def test_modules_are_seen_to_begin_and_to_end_also_those_that_join_late_or_raise(mode: Mode) -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError

    net = nn.Sequential(nn.Linear(2, 3))
    mode.watch(net)
    net(torch.ones(1, 2))
    net.append(nn.ReLU())
    mode.enter(mode.log)
    net(torch.ones(1, 2))
    net.append(Raises())
    with pytest.raises(ArithmeticError):
        net(torch.ones(1, 2))
    mode.leave(mode.log)
    assert mode.log.modules == [
        *(whole := ["+Sequential", "+Linear", "-Linear", "+ReLU", "-ReLU", "-Sequential"]),
        *whole,
    ]
    mode.enter(mode.log)
    with pytest.raises(ArithmeticError):
        net(torch.ones(1, 2))
    mode.leave(mode.log)
    assert mode.log.modules[-4:] == ["-ReLU", "+Raises", "-Raises", "-Sequential"]
    mode.quit(mode.log)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_it_comes_and_goes_beneath_the_modes_of_others(mode: Mode) -> None:
    mode.enter(mode.log)
    other = Other()
    with other:
        mode.leave(mode.log)
        assert stack() == [other]
        mode.enter(mode.log, again=True)
        assert stack() == [mode, other]
    assert stack() == [mode]
    with torch.device("cpu"):
        mode.leave(mode.log)
    assert stack() == []


def test_who_waits_is_shown_nothing_before_the_next_forward_pass(mode: Mode) -> None:
    net, values = small(), torch.ones(2)
    mode.watch(net)
    mode.enter(mode.log, waits=True)
    values.exp()
    assert (mode.log.names, stack()) == ([], [])
    net(torch.ones(1, 2)).sum()
    assert mode.log.names == ["linear", "relu", "sum"]
    mode.leave(mode.log)
    mode.enter(mode.log, again=True, waits=True)
    assert stack() == []
    other = Log()
    mode.join(other, net)
    mode.enter(other)  # who does not wait
    values.exp()
    assert other.names == ["exp"]
    mode.leave(other)
    mode.leave(mode.log)
    mode.enter(mode.log, waits=True)
    mode.leave(mode.log)
    net(torch.ones(1, 2))
    assert (mode.log.names[3:], stack()) == (["exp"], [])
    mode.quit(other)


def test_a_checkpointed_block_s_repetition_is_not_seen(mode: Mode) -> None:
    net = small()
    mode.enter(mode.log)
    out = checkpoint(net, torch.ones(4, 2), use_reentrant=False)
    before = len(mode.log.names)
    out.sum().backward()
    mode.leave(mode.log)
    assert mode.log.names[before:] == ["sum"]


def test_copies_and_other_threads_see_nothing(mode: Mode) -> None:
    for twin in (copy.deepcopy(FunctionMode()), copy.deepcopy(mode), pickle.loads(pickle.dumps(mode))):
        assert (twin._listening, twin.on) == ([], False)
    mode.enter(mode.log)
    thread = threading.Thread(target=lambda: torch.ones(2))
    thread.start()
    thread.join()
    with torch.inference_mode():
        torch.ones(2).mul(2)
    mode.leave(mode.log)
    assert mode.log.names[-2:] == ["ones", "mul"]
    assert mode.log.names.count("ones") == 1


def test_attention_in_evaluation_mode_keeps_its_kernel(mode: Mode) -> None:
    """The rest of the net is seen all the same."""
    torch.manual_seed(0)
    frozen = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    net = nn.Sequential(frozen, nn.Linear(8, 1))
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        plain = net(x)
        mode.watch(net)
        mode.enter(mode.log)
        assert torch.equal(net(x), plain)
        assert mode.on
    mode.leave(mode.log)
    assert mode.log.names[:1] == ["linear"]


def test_compiled_parts_are_compiled_once_and_the_rest_is_seen(mode: Mode) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net = nn.Sequential(torch.compile(small(), backend="eager"), nn.Linear(3, 1))  # type: ignore[arg-type]
    mode.watch(net)
    for step in range(4):
        if step % 2:
            mode.enter(mode.log)
        net(torch.ones(4, 2)).sum().backward()
        mode.leave(mode.log)
    assert [name for name in mode.log.names if name != "ones"] == ["linear", "sum"] * 2
    assert torch._dynamo.utils.counters["frames"]["total"] == 1
    torch._dynamo.reset()


def test_a_model_compiled_in_place_is_left_alone(mode: Mode) -> None:
    net = small()
    net.compile(backend="eager")
    mode.watch(net)
    mode.enter(mode.log)
    assert not mode.on
