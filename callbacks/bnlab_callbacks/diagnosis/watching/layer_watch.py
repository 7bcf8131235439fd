"""A watch on a net's parameters in a run: which are layers, which rest, and which have no gradient or no optimizer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bnlab_callbacks.core.weights import Weight, find_weights, is_layer, multiplies
from bnlab_callbacks.diagnosis.watching.inventory import frozen_layers, layers_without_optimizer
from bnlab_callbacks.diagnosis.watching.loss_graph import LossGraph

_TRACES = 4  # losses whose graphs are looked at, at most: of several optimizers each has its own
Sort = Callable[[Sequence[tuple[str, str]]], list[str]]  # (layer, module that holds it) → layers in order of execution


class LayerWatch:
    """Follows a net's parameters through a run.

    Attributes:
        scales: parameters that are no layers: gains, tokens, positions, magnitudes.
        bare_pairs: linear layers that follow one another with nothing between them.

    Args:
        model: the net, as training begins.
        constant: layers all of whose weights were equal when training began → that weight.
    """

    def __init__(self, model: nn.Module, constant: Mapping[str, float]) -> None:
        self.scales: set[str] = set()
        self._model = model
        self._constant = constant
        self._traces = 0
        self._without: set[str] = set()
        self._with: set[str] = set()
        self._state: Any = None
        self._changing: dict[str, Any] = {}
        self._find()

    def _find(self) -> None:
        modules = dict(self._model.named_modules())
        self._weights = list(find_weights(self._model, frozen=True))
        self._by_id = {id(weight.parameter): weight for weight in self._weights}
        self._modules = {weight.layer: modules[weight.module] for weight in self._weights}
        self._parameters = list(self._model.parameters())
        self._unseen = list(self._weights)  # which no loss has shown yet
        self.scales.clear()
        self.scales.update(weight.layer for weight in self._weights if not is_layer(*self._place(weight)))
        self.bare_pairs: list[tuple[str, str]] = []

    def _place(self, weight: Weight) -> tuple[nn.Module, str, Tensor]:
        module = self._modules[weight.layer]
        own = module.named_parameters(recurse=False)
        return module, next(key for key, parameter in own if parameter is weight.parameter), weight.parameter

    def trace(self, loss: Tensor) -> None:
        """See in a loss's graph how parameters enter, before the backward pass; of the first losses only."""
        if self._traces >= _TRACES or loss.grad_fn is None:
            return
        if not self._traces:
            self._find()  # lazy layers have their shapes by now
        self._traces += 1
        graph = LossGraph(loss)
        self._unseen = [weight for weight in self._unseen if not graph.holds(weight.parameter)]
        if not self._unseen:
            self._traces = _TRACES
        for weight in self._weights:
            enters = None if multiplies(self._modules[weight.layer]) else graph.multiplies(weight.parameter)
            if enters is not None:
                (self.scales.discard if enters else self.scales.add)(weight.layer)
        linear = {w.layer: w.parameter for w in self._weights if isinstance(self._modules[w.layer], nn.Linear)}
        self.bare_pairs = list(dict.fromkeys([*self.bare_pairs, *graph.bare_pairs(linear)]))

    def look(self, optimizer: Optimizer) -> None:
        """Note which of an optimizer's layers have a gradient, before it makes its step."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                weight = self._by_id.get(id(parameter))
                if weight is None or weight.layer in self._with or weight.layer in self.scales:
                    continue
                if parameter.grad is None:
                    self._without.add(weight.layer)
                else:
                    self._with.add(weight.layer)
                    self._without.discard(weight.layer)

    def facts(self, optimizers: Sequence[Optimizer], sort: Sort) -> dict[str, Any]:
        """What changes in a run: fields of `Facts`, layers in order of execution.

        Copies of parts that are trained, such as target networks, rest on purpose and are left out.

        Args:
            optimizers: all that train the net.
            sort: sorts layers.
        """
        state = (
            [parameter.requires_grad for parameter in self._parameters],
            [len(group["params"]) for optimizer in optimizers for group in optimizer.param_groups],
            len(self._with),
            len(self._without),
            len(self.scales),
            len(self.bare_pairs),
        )
        if state != self._state:
            self._state = state
            layers = {w.layer: w for w in self._weights if w.parameter.requires_grad and w.layer not in self.scales}
            outside = layers_without_optimizer(list(layers.values()), optimizers)
            idle = {*outside, *self._without} & layers.keys()
            shapes = {layer: weight.parameter.shape for layer, weight in layers.items()}
            rest = set(resting(idle, shapes.keys() - idle, shapes))
            order = sort([(layer, weight.module) for layer, weight in layers.items()])
            self._changing = {
                "weights": {layer: layers[layer].parameter.numel() for layer in order if layer not in rest},
                "constant": {layer: self._constant[layer] for layer in order if layer in self._constant},
                "without_optimizer": tuple(layer for layer in order if layer in outside and layer not in rest),
                "without_gradient": tuple(layer for layer in order if layer in self._without - rest),
                "frozen": tuple(sort([(name, name) for name in frozen_layers(self._model)])),
                "bare_pairs": tuple(self.bare_pairs),
            }
        return self._changing


def resting(idle: Iterable[str], at_work: Iterable[str], shapes: Mapping[str, Any]) -> Iterator[str]:
    """Idle layers of parts that are copies of parts at work, as target and momentum networks are.

    A copy is idle as a whole, and each of its layers has the shape and the name of one at work, but for one word that
    is no number and not the layer's own: `target.0.fc` and `online.0.fc`, not `net.0` and `net.2`.

    Args:
        idle: layers without a gradient or an optimizer.
        at_work: layers with both.
        shapes: layer → its shape.
    """
    idle, at_work, parts = set(idle), set(at_work), [layer.split(".") for layer in shapes]
    for layer in sorted(idle):
        words = layer.split(".")
        for place in (place for place, word in enumerate(words[:-1]) if not word.isdecimal()):
            copy = [part for part in parts if part[: place + 1] == words[: place + 1]]
            beside = {part[place] for part in parts if part[:place] == words[:place] and len(part) > place}
            if any(all(_twins(part, place, name, idle, at_work, shapes) for part in copy) for name in beside):
                yield layer
                break


def _twins(
    part: list[str], place: int, name: str, idle: Set[str], at_work: Set[str], shapes: Mapping[str, Any]
) -> bool:
    """Whether a layer is idle, and the one with `name` as its word at this place is at work and has its shape."""
    layer, twin = ".".join(part), ".".join([*part[:place], name, *part[place + 1 :]])
    return layer in idle and twin in at_work and shapes[twin] == shapes[layer]
