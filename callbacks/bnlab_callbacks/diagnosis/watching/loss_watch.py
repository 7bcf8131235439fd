"""A training step's loss, what of the net it consumes, and the targets that this meets: seen call by call."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab_callbacks.diagnosis.watching.task import tensors_of

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
_MET = 4  # meetings by hand that are kept at most: what a net does with its inputs meets them as well
_NODES = 400  # of a loss's graph that are looked at
_LINEAR = ("Mul", "Div", "Mean", "Sum", "Neg", "View", "Squeeze", "Unsqueeze", "ToCopy", "Reshape", "Select", "Expand")


class Consumed(NamedTuple):
    """An output of the net and a target of the batch in a call that the loss comes from.

    Attributes:
        how: the loss function's name, or the kind of meeting.
        output: with its graph.
        target: without a gradient; the batch's, or made of that.
        options: of the loss function.
        linear: whether the loss is a multiple of what the call gave, a mean or a sum of it.
        root: whether it is the square root of that.
        samples: in the batch.
    """

    how: str
    output: Tensor
    target: Tensor
    options: Mapping[str, Any]
    linear: bool
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

    Args:
        backward: is called with the tensor from which a backward pass is about to begin.
    """

    def __init__(self, backward: Callable[[Tensor], None]) -> None:
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

    def called(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """A torch function has been called."""
        how = LOSSES.get(function)
        if how is not None:
            self._note_loss(how, args, kwargs, out)
            return
        given = list(_tensors(args, kwargs))
        if not given:
            return
        weights = any(isinstance(tensor, nn.Parameter) for tensor in given)
        of_net = [tensor for tensor in given if tensor.requires_grad and tensor.grad_fn is not None]
        if isinstance(out, Tensor) and out.requires_grad:
            if weights and (of_net or any(not isinstance(tensor, nn.Parameter) for tensor in given)):
                self._met.clear()  # a layer of the net, which goes on
            elif of_net and not weights:
                self._note_meeting(getattr(function, "__name__", ""), of_net[0], given, out)
            return
        if function is torch.broadcast_tensors:  # it gives each back
            for tensor, origin in zip(out, map(self._origin, given), strict=True):
                if origin is not None:
                    self._mark(tensor, origin)
            return
        origins = [self._origin(tensor) for tensor in given[:1] if _like_the_first(function)] or [
            self._origin(tensor) for tensor in given
        ]
        if weights or of_net or False in origins:
            pure = False
        elif True in origins and not _out_of_nothing(function):
            pure = True
        else:
            return
        for tensor in [out] if isinstance(out, Tensor) else out if isinstance(out, tuple | list) else ():
            if isinstance(tensor, Tensor):
                self._mark(tensor, pure)

    def take(self, loss: Tensor) -> list[Consumed]:
        """What this loss comes from, the surest first; keeps nothing of it."""
        losses, met, samples = self._losses, list(self._met), self._samples
        self._losses, self._met = [], deque(maxlen=_MET)
        nodes = set(_graph(loss.grad_fn))
        line = list(_line(loss.grad_fn))
        found = []
        for call in [*losses, *reversed(met)]:
            node = call.result.grad_fn
            if node is None or not (node in nodes or call.result is loss):
                continue
            before = line[: line.index(node)] if node in line else None
            names = [one.name().split("Backward")[0] for one in before or ()]
            root = "Sqrt" in names
            linear = before is not None and all(name.startswith((*_LINEAR, "Sqrt")) for name in names)
            found.append(Consumed(call.how, call.output, call.target, call.options, linear, root, samples))
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


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from (each for each in value if isinstance(each, Tensor))


def _like_the_first(function: Callable[..., Any]) -> bool:
    """Whether the other tensors lend shape or type alone."""
    return getattr(function, "__name__", "") in ("type_as", "expand_as", "view_as", "reshape_as", "to")


def _out_of_nothing(function: Callable[..., Any]) -> bool:
    """Whether even the first lends shape or type alone; not so noise, which a net may be asked for."""
    name = getattr(function, "__name__", "")
    return name in ("zeros_like", "ones_like", "full_like", "empty_like") or name.startswith("new_")


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
    """The nodes from the root on as long as each has one that follows."""
    while root is not None:
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
            return (_REACH[name][0], *_REACH[name][1:])
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
