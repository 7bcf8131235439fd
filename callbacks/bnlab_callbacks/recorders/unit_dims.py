"""Where the units of a tensor lie: followed from the layer that produced it through whatever moves its dimensions."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from bnlab_callbacks.recorders.activation_calls import Mark

# functions with weights → the dimension of their units, counted from the right; convolutions may be given one sample
_LAYERS = {
    **dict.fromkeys(("linear", "bilinear", "embedding", "embedding_bag", "multi_head_attention_forward"), 1),
    **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__", "mm", "addmm", "bmm", "baddbmm", "einsum"), 1),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), 1),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), 1),
    **{f"conv{n}d": n + 1 for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": n + 1 for n in (1, 2, 3)},
}
_PRODUCTS = ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "baddbmm", "einsum")
_CHANNEL_NORMS = ("batch_norm", "instance_norm", "group_norm")  # their units are dimension 1
_NORMS = (*_CHANNEL_NORMS, "layer_norm", "rms_norm")
# what makes of an activation a gate, a soft cap, a bias or a score: it weighs something, rather than to be passed on
_WEIGHS = frozenset(
    (
        *("mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply", "multiply_", "addcmul", "addcmul_"),
        *("lerp", "lerp_", "softmax", "log_softmax", "bernoulli", "bernoulli_"),
    )
)
_SWAPS = ("transpose", "swapaxes", "swapdims")


class Origin(NamedTuple):
    """What is known of a tensor.

    Attributes:
        right: dimension of its units, counted from the right, from 1.
        layer: tells apart the layers that produce tensors; None where none did.
        activation: the activation whose output it still is, but for its shape and scale.
    """

    right: int
    layer: int | None
    activation: Mark | None = None


class UnitDims:
    """Follows tensors through a step, call by call."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Origin]] = {}
        self._last: tuple[Origin, int] | None = None  # of the layer that ran last, and its number of units

    def forget(self) -> None:
        """A step is over."""
        self._known.clear()
        self._last = None

    def origin(self, tensor: Tensor) -> Origin | None:
        """What is known of a tensor: by its way, else by the layer that ran last; None before any layer ran."""
        known = self._of(tensor)
        if known is not None or self._last is None:
            return known
        last, units = self._last
        return Origin(_where(tensor.shape, last.right, units), last.layer)

    def mark(self, tensor: Tensor, activation: Mark) -> None:
        """An activation's output is about to go on its way."""
        before = self.origin(tensor)
        self._know(tensor, Origin(before.right if before else 1, before.layer if before else None, activation))

    def follow(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, here: int) -> None:
        """A function was called; marks the activations that it takes.

        Args:
            name: of the function.
            args: its arguments.
            kwargs: those by name.
            out: what it gave.
            here: tells apart the modules in which functions run.
        """
        outs = _tensors((out,))
        if not outs:
            return
        given = _tensors((*args, *kwargs.values()) if kwargs else args)
        origins = [self._of(tensor) for tensor in given]
        weighs = name in _WEIGHS or (name in _PRODUCTS and sum(one is not None for one in origins) > 1)
        feeds = not weighs and name in _LAYERS
        if weighs or feeds:
            for one in origins:
                if one is not None and one.activation is not None:
                    one.activation.weighs |= weighs
                    one.activation.feeds |= feeds
        if name in _LAYERS:
            self._produced(_LAYERS[name], given, outs, here)
            return
        source = _source(given, origins, outs[0].ndim)
        if source is None:
            return
        tensor, origin = source
        # through a function of one tensor an activation's output is still that, in another shape or scale
        activation = origin.activation if len(given) == 1 or name in _NORMS else None
        for made in outs:
            if made is not tensor:
                right = _moved(name, args, kwargs, tensor.shape, origin.right, made.shape)
                right = made.ndim - 1 if name in _CHANNEL_NORMS and made.ndim > 1 else right
                self._know(made, Origin(right, origin.layer, activation))

    def _produced(self, right: int, given: list[Tensor], outs: list[Tensor], here: int) -> None:
        weight = next((id(one) for one in given if type(one) is nn.Parameter and one.ndim > 1), here)
        made = Origin(right, weight)
        for one in outs:
            self._know(one, made)
        if outs[0].ndim >= right:
            self._last = made, outs[0].shape[-right]

    def _know(self, tensor: Tensor, origin: Origin) -> None:
        self._known[id(tensor)] = weakref.ref(tensor), origin

    def _of(self, tensor: Tensor) -> Origin | None:
        known = self._known.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += [each for each in value if isinstance(each, Tensor)]
    return found


def _source(given: list[Tensor], origins: list[Origin | None], ndim: int) -> tuple[Tensor, Origin] | None:
    """The tensor that decides, and what is known of it: the first with as many dimensions, else the first one known."""
    found = None
    for tensor, origin in zip(given, origins, strict=True):
        if origin is not None:
            if tensor.ndim == ndim:
                return tensor, origin
            found = found or (tensor, origin)
    return found


def _moved(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], before: Sequence[int], right: int, after: Sequence[int]
) -> int:
    """Where units are, counted from the right, behind a function that may have moved dimensions."""
    ndim, place = len(before), len(before) - right
    if place < 0:
        return 1
    if name in _SWAPS and len(args) + len(kwargs) == 3:
        one, other = (int(dim) % ndim for dim in (*args[1:], *kwargs.values()))
        return ndim - {one: other, other: one}.get(place, place)
    if name == "t" and ndim == 2:
        return 3 - right
    if name == "permute":
        dims = args[1] if len(args) > 1 else kwargs.get("dims", ())
        dims = list(dims) if isinstance(dims, Sequence) else list(args[1:])
        return ndim - [int(dim) % ndim for dim in dims].index(place)
    if len(after) == ndim:  # of one size, or divided, joined, pooled
        return right
    if len(after) >= right and list(after[-right:]) == list(before[-right:]):  # dimensions before it came or went
        return right
    if len(after) > place and list(after[: place + 1]) == list(before[: place + 1]):  # dimensions behind it did
        return len(after) - place
    return 1


def _where(shape: Sequence[int], right: int, units: int) -> int:
    """Where a layer's units are in what was made of its output in ways that were not seen."""
    if right <= len(shape) and shape[-right] == units:
        return right
    places = [place for place, size in enumerate(shape) if size == units and place > 0]
    return len(shape) - places[0] if len(places) == 1 else min(right, max(len(shape), 1))
