"""A training step's loss, what of the net it consumes, and the targets that this meets: seen call by call."""

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab_callbacks.diagnosis.watching.batch_tensors import tensors_of

# functions of an output and a target
LOSSES: dict[Callable[..., Any], str] = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll",
    F.binary_cross_entropy: "binary",
    F.binary_cross_entropy_with_logits: "binary_logits",
    F.mse_loss: "squared",
    F.l1_loss: "absolute",
    F.smooth_l1_loss: "smooth",
    F.huber_loss: "huber",
}
# by hand, a target meets an output in one of these
MEETINGS = {
    **dict.fromkeys(("sub", "rsub", "__sub__", "__rsub__", "__isub__", "sub_", "subtract"), "difference"),
    **dict.fromkeys(("mul", "__mul__", "__rmul__", "multiply"), "product"),
    **dict.fromkeys(("gather", "__getitem__", "take_along_dim"), "choice"),
}
# whose other tensors lend shape or type alone, and whose first does, too; not so noise, which a net may have to find
_LIKE_THE_FIRST = ("type_as", "expand_as", "view_as", "reshape_as", "to")
_OUT_OF_NOTHING = ("zeros_like", "ones_like", "full_like", "empty_like")
_MET = 4  # meetings by hand that are kept at most: what a net does with its inputs meets them as well
_NODES = 100  # of a loss's graph that are looked at
_SHORT = 32  # of them in a row
_LINEAR = ("Mul", "Div", "Mean", "Sum", "Neg", "View", "Squeeze", "Unsqueeze", "ToCopy", "Reshape", "Select", "Expand")


class Consumed(NamedTuple):
    """An output of the net and a target of the batch in a call that the loss comes from.

    Attributes:
        how: the loss function's name, or the kind of meeting.
        output: with its graph.
        target: without a gradient; the batch's, or made of that.
        options: of the loss function.
        linear: whether the loss is a multiple of what the call gave, a mean or a sum of it.
        single: whether the call gave one number; what is made of several may be a mean over some.
        root: whether it is the square root of that.
        samples: in the batch.
    """

    how: str
    output: Tensor
    target: Tensor
    options: Mapping[str, Any]
    linear: bool
    single: bool
    root: bool
    samples: int


class _Call(NamedTuple):
    how: str
    output: Tensor
    target: Tensor
    options: Mapping[str, Any]
    result: Tensor


class LossWatch:
    """Follows what is made of a batch in a step, and where it meets what the net makes of it.

    A target carries no gradient and is made of tensors of the batch alone: not by a net (a teacher's outputs, sampled
    actions), and not out of nothing (labels of a GAN, places in a contrastive batch). Behind the last layer with
    weights the first calls of both are the loss; a loss function of `torch.nn.functional` is one anywhere.

    Attributes:
        failure: the last error, noted by the function mode.

    Args:
        backward: is called with the tensor from which a backward pass is about to begin.
    """

    def __init__(self, backward: Callable[[Tensor], None]) -> None:
        self.failure: str | None = None
        self._on_backward = backward
        self._made: dict[int, tuple[weakref.ref[Tensor], bool]] = {}  # without gradient → whether of the batch alone
        self._losses: list[_Call] = []
        self._met: deque[_Call] = deque(maxlen=_MET)
        self._samples = 0

    def begin(self, batch: Any) -> None:
        """A batch begins."""
        self.forget()
        for tensor in tensors_of(batch, deep=True):
            self._mark(tensor, True)
            self._samples = self._samples or (len(tensor) if tensor.ndim else 0)

    def forget(self) -> None:
        """Keep no tensors."""
        self._made.clear()
        self._losses.clear()
        self._met.clear()
        self._samples = 0

    def backward(self, losses: Sequence[Tensor]) -> None:
        """A backward pass is about to begin from these."""
        if losses:
            self._on_backward(losses[0])

    def entered(self, module: nn.Module) -> None:
        """A module's forward pass begins."""

    def left(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """It is over."""

    def called(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """A torch function has been called."""
        how = LOSSES.get(function)
        if how is not None:
            self._note_loss(how, args, kwargs, out)
            return
        outs = (out,) if isinstance(out, Tensor) else out if isinstance(out, tuple | list) else ()
        if not outs:
            return
        given = _tensors(args, kwargs)
        weights, of_net = False, None
        for tensor in given:
            if _is_weight(tensor):
                weights = True
            elif of_net is None and tensor.requires_grad and not tensor.is_leaf:
                of_net = tensor
        if isinstance(out, Tensor) and out.requires_grad:
            if weights and not all(map(_is_weight, given)):
                self._met.clear()  # a layer of the net, which goes on
            elif of_net is not None and not weights:
                self._note_meeting(getattr(function, "__name__", ""), of_net, given, out)
            return
        if function is torch.broadcast_tensors:  # it gives each back
            made: list[bool | None] = [self._origin(tensor) for tensor in given]
        elif weights or of_net is not None:
            made = [False] * len(outs)
        else:
            made = [self._origin_of_all(function, given)] * len(outs)
        for tensor, pure in zip(outs, made, strict=True):
            if pure is not None and isinstance(tensor, Tensor):
                self._mark(tensor, pure)

    def _origin_of_all(self, function: Callable[..., Any], given: Sequence[Tensor]) -> bool | None:
        """The origin of what is made of tensors without gradients."""
        name = getattr(function, "__name__", "")
        if name in _OUT_OF_NOTHING or name.startswith("new_"):
            return None
        origins = [self._origin(tensor) for tensor in (given[:1] if name in _LIKE_THE_FIRST else given)]
        return False if False in origins else True if True in origins else None

    def take(self, loss: Tensor) -> list[Consumed]:
        """What this loss comes from, the surest first; keeps nothing of it."""
        losses, met, samples = self._losses, list(self._met), self._samples
        self._losses, self._met = [], deque(maxlen=_MET)
        nodes = set(_graph(loss.grad_fn))
        line = list(_line(loss.grad_fn))
        found = []
        for call in [*losses, *reversed(met)]:
            node = call.result.grad_fn
            if node is None or node not in nodes:
                continue
            before = line[: line.index(node)] if node in line else None
            names = [one.name().split("Backward")[0] for one in before or ()]
            root = "Sqrt" in names
            linear = before is not None and all(name.startswith((*_LINEAR, "Sqrt")) for name in names)
            found.append(
                Consumed(call.how, call.output, call.target, call.options, linear, call.result.ndim == 0, root, samples)
            )
        return found

    def _note_loss(self, how: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        named = {**dict(zip(("input", "target"), args, strict=False)), **kwargs}
        output, target = named.pop("input", None), named.pop("target", None)
        if not (isinstance(out, Tensor) and isinstance(output, Tensor) and isinstance(target, Tensor)):
            return
        if target.requires_grad and not output.requires_grad:
            output, target = target, output  # of two that are alike to the function
        if not (output.grad_fn is not None and self._origin(target)):
            return
        if len(args) > 2:
            named["weight" if how not in ("squared", "absolute", "smooth", "huber") else "more"] = args[2]
        self._losses.append(_Call(how, output, target, named, out))

    def _note_meeting(self, name: str, output: Tensor, given: Sequence[Tensor], out: Tensor) -> None:
        how = MEETINGS.get(name)
        target = next((tensor for tensor in given if self._origin(tensor)), None) if how else None
        if how and target is not None and _may_be_target(how, output, target):
            self._met.append(_Call(how, output, target, {}, out))

    def _mark(self, tensor: Tensor, pure: bool) -> None:
        self._made[id(tensor)] = weakref.ref(tensor), pure

    def _origin(self, tensor: Tensor) -> bool | None:
        """Whether it is made of the batch alone; False where a net took part, None where neither is known."""
        made = self._made.get(id(tensor))
        return made[1] if made is not None and made[0]() is tensor else None


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += [each for each in value if isinstance(each, Tensor)]
    return found


def _is_weight(tensor: Tensor) -> bool:
    """Whether it is a parameter; asked of subclasses alone, since the question costs more than all others."""
    return type(tensor) is not Tensor and isinstance(tensor, nn.Parameter)


def _may_be_target(how: str, output: Tensor, target: Tensor) -> bool:
    """Whether the shapes are those of an output and its targets, alike or broadcast by mistake."""
    if how == "choice":
        return not target.is_floating_point() and target.numel() * output.shape[-1] == output.numel()
    return target.shape == output.shape or (target.numel() == output.numel() and target.ndim != output.ndim)


def _graph(root: Any) -> Iterator[Any]:
    """The nodes next to the root of an autograd graph, the nearest first."""
    seen, queue = {root}, deque([root] if root is not None else [])
    while queue and len(seen) < _NODES:
        node = queue.popleft()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)


def _line(root: Any) -> Iterator[Any]:
    """The nodes from the root on as long as each has one that follows; a loss is short."""
    for _ in range(_SHORT):
        if root is None:
            return
        yield root
        following = [node for node, _ in root.next_functions if node is not None]
        root = following[0] if len(following) == 1 else None


def reach_of(output: Tensor) -> tuple[str, float, float] | None:
    """The function that an output is the value of, through views, and what that can reach; None where it is unknown.

    The name is `softmax of one` or `softmax of the batch` where it divides by a sum of one value, or over the samples.
    """
    for node in _line(output.grad_fn):
        name = node.name().split("Backward")[0]
        if name == "Softmax":
            result = node._saved_result
            dim = node._saved_dim if node._saved_dim < 1 << 63 else node._saved_dim - (1 << 64)
            if result.shape[dim] == 1:
                return "softmax of one", 1.0, 1.0
            return "softmax of the batch" if result.ndim > 1 and dim % result.ndim == 0 else "softmax", 0.0, 1.0
        if name in _REACH:
            return _REACH[name]
        if not name.startswith(_VIEWS):
            return None
    return None


_INF = torch.inf
_REACH = {
    "Sigmoid": ("sigmoid", 0.0, 1.0),
    "Hardsigmoid": ("hard sigmoid", 0.0, 1.0),
    "Tanh": ("tanh", -1.0, 1.0),
    "Relu": ("ReLU", 0.0, _INF),
    "Softplus": ("softplus", 0.0, _INF),
    "Exp": ("exp", 0.0, _INF),
    "LogSoftmax": ("log softmax", -_INF, 0.0),
    "LogSigmoid": ("log sigmoid", -_INF, 0.0),
}
_VIEWS = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "Transpose", "Permute", "ToCopy")
