"""The graph of a loss: how parameters enter it, and linear layers that follow one another with nothing between them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

_MOST_NODES = 50_000  # that are looked at: some 0.1 s
_SHAPES = re.compile(
    "View|UnsafeView|Reshape|ReshapeAlias|Alias|AsStrided|T|Transpose|Permute|Movedim|Expand|Repeat|Slice|Select|Split|"
    "SplitWithSizes|Unbind|Cat|Stack|Index|IndexSelect|Flip|Unsqueeze|Squeeze|Clone|ToCopy|ViewAsReal|ViewAsComplex"
)
# linear in each operand: what a weight may pass before it is multiplied, in masks, mixtures and sampled weights
_LINEAR = ("Add", "Sub", "Rsub", "Mul", "Div", "Neg")
# → the operand that is the weight
_PRODUCTS: dict[str, int | None] = {
    "Addmm": 2,
    "Mm": 1,
    "Bmm": None,  # of two signals, or as `einsum` puts it
    "Baddbmm": None,
    "Addbmm": None,
    "Mv": 0,
    "Addmv": 1,
    "Linear": 1,
    "MkldnnLinear": 1,
    "Convolution": 1,
    "ConvolutionOverrideable": 1,
    "CudnnConvolution": 1,
    "MkldnnConvolution": 1,
    "Embedding": 0,
    "EmbeddingBag": 0,
    "Trilinear": 1,
}


class LossGraph:
    """The graph behind a loss, from the loss to the parameters; nothing of it is changed or kept alive.

    Args:
        loss: with its graph.
    """

    def __init__(self, loss: Tensor) -> None:
        self._users: dict[Any, list[tuple[Any, int]]] = defaultdict(list)  # node → what it goes into, as which operand
        self._leaves: dict[int, Any] = {}  # id of a parameter → its node
        waiting: list[Any] = [loss.grad_fn] if loss.grad_fn is not None else []
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            if node.name() == "torch::autograd::AccumulateGrad":
                self._leaves[id(node.variable)] = node
            for operand, (source, _) in enumerate(node.next_functions):
                if source is None:
                    continue
                self._users[source].append((node, operand))
                if source not in seen:
                    seen.add(source)
                    waiting.append(source)
            if len(seen) > _MOST_NODES:
                self._leaves.clear()  # of a part nothing could be said
                break

    def holds(self, parameter: Tensor) -> bool:
        """Whether the loss depends on a parameter."""
        return id(parameter) in self._leaves

    def multiplies(self, parameter: Tensor) -> bool | None:
        """Whether a parameter enters as a layer's weights; None where that cannot be seen.

        It does if it goes, but for its shape, into a matrix product, a convolution or an embedding, or after sums and
        products, as a sampled weight's mean does, into such a one as the operand that is the weight. A gain is
        multiplied into the signal, element by element; positions are added to it; what comes behind an exponential,
        such as a variance or the decay of a state-space model, has no fans either. What has one dimension, whatever
        ones stand beside it, must be the weight as it is: a weight norm's magnitudes are not.
        """
        if id(parameter) not in self._leaves:
            return None
        vector = parameter.ndim > 1 and sum(size > 1 for size in parameter.shape) < 2
        known = True
        waiting = [(self._leaves[id(parameter)], True)]
        seen = set(waiting)
        while waiting:
            node, as_it_is = waiting.pop()
            for user, operand in self._users[node]:
                name = kind(user)
                if name in _PRODUCTS:
                    is_weight = operand == _PRODUCTS[name]
                    if (as_it_is and (is_weight or not vector)) or (is_weight and not vector):
                        return True
                    continue
                known = known and not _is_closed(user)
                same = bool(_SHAPES.fullmatch(name)) or (name == "WeightNormInterface" and operand == 0)
                step = (user, as_it_is and same)
                if (same or name in _LINEAR) and step not in seen:
                    seen.add(step)
                    waiting.append(step)
        return False if known else None

    def is_gain(self, parameter: Tensor) -> bool:
        """Whether a parameter, as it is, is multiplied element by element, or is a norm's scale."""
        users = self._through_shapes(self._leaves[id(parameter)]) if self.holds(parameter) else ()
        return any(kind(user) == "Mul" or (operand == 1 and kind(user).endswith("Norm")) for user, operand in users)

    def bare_pairs(self, layers: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Pairs of linear layers of which the second gets the first one's outputs as they are.

        Nothing but a change of shape lies between them, so that both are one. A pair whose middle is narrower than both
        ends is left out: a matrix of low rank is made so.

        Args:
            layers: name → the weights (out, in) of linear layers, in order of execution.
        """
        names = {id(weight): name for name, weight in layers.items()}
        products = {}  # matrix product → the layer
        for weight in layers.values():
            for product in self._products_of(weight):
                products[product] = weight
        for first, weight in products.items():
            users = list(self._through_shapes(first))
            for user, operand in users:
                other = products.get(user)
                # used elsewhere too, the first one's outputs are no mere step on the way
                if other is None or operand == _PRODUCTS[kind(user)] or len(users) > 1 or other is weight:
                    continue
                if weight.shape[0] >= min(weight.shape[1], other.shape[0]):
                    yield names[id(weight)], names[id(other)]

    def _products_of(self, weight: Tensor) -> Iterator[Any]:
        if id(weight) in self._leaves:
            for user, operand in self._through_shapes(self._leaves[id(weight)]):
                if kind(user) in ("Addmm", "Mm", "Linear") and operand == _PRODUCTS[kind(user)]:
                    yield user

    def _through_shapes(self, node: Any) -> Iterator[tuple[Any, int]]:
        """What a node's result goes into, beyond changes of shape."""
        for user, operand in self._users[node]:
            if _SHAPES.fullmatch(kind(user)):
                yield from self._through_shapes(user)
            else:
                yield user, operand


def kind(node: Any) -> str:
    """A node's function: `AddmmBackward0` → `Addmm`."""
    return str(node.name()).partition("Backward")[0]


def _is_closed(node: Any) -> bool:
    """Whether a node is somebody's own function, compiled code or a checkpoint: autograd does not see inside."""
    name = str(node.name())
    return not name.startswith("torch::autograd") and not name[-1].isdigit()
