"""The weights that a recorder of gradients watches: which there are, their numbers, and which optimizer has them."""

from collections.abc import Collection, Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from bnlab_callbacks.core.hooks import ForwardOrder
from bnlab_callbacks.core.naming import continue_numbers, number
from bnlab_callbacks.core.weights import Weight, find_weights, holders


class WatchedWeights:
    """All weights of a model, also those that are frozen, lazy or added later.

    Numbers are those of the order of execution, first of what is trained, then of what is frozen, then of vectors; what
    comes later gets the next ones. No tag ever changes its name.

    Attributes:
        order: the order in which modules ran in the first batch.
        ordered: whether that is known.
        weights: what was found.
        numbered: layers, and vectors if they are wanted → `<NN>_<layer>`.
        trained: the layers that were trained so far, in order of execution.
        vectors: those of `numbered` that are no layers' weights.
        new: names of weights that were found since somebody looked; one may have taken the place of another.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.order = ForwardOrder(holders(model))
        self.ordered = False
        self.weights = find_weights(model, frozen=True)
        self.numbered: dict[str, str] = {}
        self.trained: tuple[str, ...] = ()
        self.vectors: frozenset[str] = frozenset()
        self.new: list[str] = [weight.layer for weight in self.weights]
        self._model = model
        self._with_vectors = False
        # a GAN's parts are frozen by turns while the other one trains: what counts is how they began
        self._free = {id(weight.parameter) for weight in self.weights if weight.trained}
        self._places: dict[str, int] = {}  # layer → its place in the order of execution
        self._owned: dict[str, tuple[list[int], dict[int, Weight]]] = {}

    @property
    def layers(self) -> list[str]:
        """Names of the layers that are trained, in order of definition."""
        return [weight.layer for weight in self.weights if id(weight.parameter) in self._free and not weight.vector]

    def number(self, known: Mapping[str, str], vectors: bool) -> None:
        """Fix the numbers when the first batch has shown the order of execution.

        Args:
            known: numbers of the run that goes on; else empty.
            vectors: whether vectors are watched, too.
        """
        self.ordered = True
        self.numbered, self._with_vectors = dict(known), vectors
        self._find()  # lazy ones have their shapes by now
        self.trained = tuple(sorted(self.layers, key=self._places.__getitem__))
        self.order.rest()

    def note_trained(self, weights: Sequence[Weight]) -> None:
        """Layers that are trained from now on have their place in the order of execution."""
        new = {weight.layer for weight in weights if not weight.vector}.difference(self.trained)
        if new:
            self.trained = tuple(sorted({*self.trained, *new}, key=self._places.__getitem__))

    def owned_by(self, optimizer: Optimizer, stream: str) -> dict[int, Weight]:
        """The watched weights among an optimizer's parameters, by the parameter's identity.

        Args:
            optimizer: the optimizer.
            stream: its name.
        """
        identities = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        known, owned = self._owned.get(stream, ([], {}))
        if identities != known:
            self._find()  # layers may have been added to the model
            wanted = set(identities)
            owned = {id(w.parameter): w for w in self.weights if id(w.parameter) in wanted}
            self._owned[stream] = identities, owned
        return owned

    def known_of(self, stream: str) -> Collection[int]:
        """The identities of those that an optimizer was seen to have."""
        return self._owned[stream][1].keys() if stream in self._owned else ()

    def _find(self) -> None:
        """Find weights that are new, and number them."""
        known = {id(weight.parameter) for weight in self.weights}
        found = find_weights(self._model, frozen=True, vectors=self._with_vectors)
        new = {weight.layer: weight for weight in found if id(weight.parameter) not in known}
        self.weights = [weight for weight in self.weights if weight.layer not in new] + list(new.values())
        self._free |= {id(weight.parameter) for weight in new.values() if weight.trained}
        self.vectors = frozenset(weight.layer for weight in self.weights if weight.vector)
        in_order = self.order.sort([(weight.layer, weight.module) for weight in self.weights])
        self._places = {layer: place for place, layer in enumerate(in_order)}
        groups = {w.layer: 2 if w.vector else int(id(w.parameter) not in self._free) for w in self.weights}
        if not self.numbered:
            self.numbered = number(layer for layer in in_order if not groups[layer])
        self.numbered = continue_numbers(self.numbered, sorted(in_order, key=groups.__getitem__))
        self.new += new
