"""Tables of gradient statistics, from what the recorder left of some steps."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor

from bnlab_callbacks.core.device import to_host
from bnlab_callbacks.core.records import Table
from bnlab_callbacks.recorders.gradient_steps import GradientStep, Part
from bnlab_callbacks.recorders.tables import Tables, everything
from bnlab_callbacks.statistics.gradients import depth_slope, gradient_statistics, update_ratio


class GradientTables(Tables):
    """Turns what `GradientRecorder` left into tables, for one reader.

    Args:
        wants: which layers are to be in the tables.
        update_ratio: whether how far the steps moved the weights is.
        changed_frac: whether the share of 16-bit weights that a step changed is, where it was recorded.
        weight_rms: whether the weights' size, ‖w‖₂/√n before the step, is: `weight_rms/<NN>_<layer>`.
        vectors: whether biases, scales and other vectors are in them, beside layers' weights.
    """

    def __init__(
        self,
        wants: Callable[[str], bool] = everything,
        update_ratio: bool = True,
        weight_rms: bool = False,
        changed_frac: bool = False,
        vectors: bool = False,
    ) -> None:
        super().__init__(wants)
        self.update_ratio = update_ratio
        self.weight_rms = weight_rms
        self.changed_frac = changed_frac
        self.vectors = vectors
        self._trained: tuple[str, ...] = ()
        self._left_out: frozenset[str] = frozenset()
        self._nonfinite_steps: dict[str, int] = defaultdict(int)

    def read(self, steps: Sequence[GradientStep]) -> list[Table]:
        """Tables of recorded steps, whose tensors are on the host."""
        self.numbered, self._trained = steps[-1].numbered, steps[-1].trained
        self._left_out = frozenset() if self.vectors else steps[-1].vectors
        wanted = [[part for part in step.parts if any(self._shows(w.layer) for w in part.weights)] for step in steps]
        alone = [part for parts in wanted for part in parts if part.packed is None]
        numbers = iter(to_host([value for part in alone for value in (*part.sums, *part.moved, *part.changed)]))
        read = {
            id(part): part._replace(
                sums=tuple(islice(numbers, len(part.sums))),
                moved=tuple(islice(numbers, len(part.moved))),
                changed=tuple(islice(numbers, len(part.changed))),
            )
            for part in alone
        }
        on_host = [[read.get(id(part), part) for part in parts] for parts in wanted]
        return [self._table(list(alike)) for _, alike in groupby(on_host, key=lambda parts: [p.key for p in parts])]

    def _shows(self, layer: str) -> bool:
        return layer not in self._left_out and self.wants(layer)

    def _table(self, steps: list[list[Part]]) -> Table:
        """The table of K steps of the same parts."""
        parts = list(zip(*steps, strict=True))
        if not parts:
            return Table((), torch.zeros(len(steps), 0, dtype=torch.float64))
        depths = {layer: depth for depth, layer in enumerate(self._trained)}
        found = _weights(parts)
        places = [place for place, weight in enumerate(found) if self._shows(weight.layer)]
        # small layers come together, packed; vectors are last
        places.sort(key=lambda place: depths.get(found[place].layer, len(depths)))
        weights = [found[place] for place in places]
        names = [self.numbered[weight.layer] for weight in weights]
        numel = torch.tensor([weight.numel for weight in weights], dtype=torch.float64)
        sums = torch.cat([_sums(same) for same in parts], 1)[:, places]
        scale = sums.new_tensor([[part.scale for part in step for _ in part.weights] for step in steps])[:, places]
        statistics = gradient_statistics(sums, numel, scale)
        for name, count in zip(names, (statistics["grad_nonfinite"] > 0).sum(0).tolist(), strict=True):
            self._nonfinite_steps[name] += count
        if self.update_ratio and parts[0][0].moved:
            squares = torch.cat([_moves(same) for same in parts], 1)[:, places]
            statistics["update_ratio"] = update_ratio(squares)
            if self.weight_rms:
                statistics["weight_rms"] = (squares[..., 1] / numel).sqrt()
        if self.changed_frac and any(same[0].changed for same in parts):
            statistics["changed_frac"] = torch.cat([_changed(same) for same in parts], 1)[:, places]
        tags = [f"{quantity}/{name}" for quantity in statistics for name in names]
        columns = list(statistics.values())
        if sum(map(self.wants, depths)) > 1:
            layers = [place for place, weight in enumerate(weights) if weight.layer in depths]
            rms = sums.new_full((len(steps), len(depths)), math.nan)
            rms[:, [depths[weights[place].layer] for place in layers]] = statistics["grad_rms"][:, layers]
            tags.append("grad_depth_slope")
            columns.append(depth_slope(rms)[:, None])
        return Table(tuple(tags), torch.cat(columns, 1))

    def pop_epoch(self) -> dict[str, float]:
        """The number of steps whose gradient was not finite, by tag; start the next epoch."""
        values = {f"grad_nonfinite_steps_epoch/{name}": float(n) for name, n in self._nonfinite_steps.items()}
        self._nonfinite_steps = defaultdict(int, dict.fromkeys(self._nonfinite_steps, 0))
        return values

    def state_dict(self) -> dict[str, Any]:
        """Numbers, and the names that layers have."""
        return {"nonfinite_steps": dict(self._nonfinite_steps), "numbered": dict(self.numbered)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._nonfinite_steps.update(state.get("nonfinite_steps", {}))
        self.numbered = dict(state.get("numbered", {}))  # not in version 0.1.0


def _weights(parts: list[tuple[Part, ...]]) -> list[Any]:
    return [weight for same in parts for weight in same[0].weights]


def _sums(same: Sequence[Part]) -> Tensor:
    """(K, layers, 6) of the same part of K steps."""
    if same[0].packed:
        return same[0].packed.join_sums([part.sums for part in same])
    return torch.tensor([[part.sums] for part in same], dtype=torch.float64)


def _moves(same: Sequence[Part]) -> Tensor:
    """(K, layers, 2) of the same part of K steps: ‖Δw‖₂² and ‖w‖₂²."""
    if same[0].packed:
        return same[0].packed.join_squares([part.moved for part in same])
    return torch.tensor([[part.moved] for part in same], dtype=torch.float64)


def _changed(same: Sequence[Part]) -> Tensor:
    """(K, layers) of the same part of K steps: shares of weights that changed; NaN where they are not known."""
    unknown = [math.nan] * len(same[0].weights)
    return torch.tensor([[float(share) for share in part.changed] or unknown for part in same], dtype=torch.float64)
