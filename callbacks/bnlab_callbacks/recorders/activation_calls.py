"""Calls of activation functions in a recorded step, and their sums joined over accumulated batches and over ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.core.device import Change, pack, widest
from bnlab_callbacks.statistics.activations import ActivationSums, Moments, Saturation, split_rows, sums_of_rows
from bnlab_callbacks.statistics.chunks import Scratch


class Outputs(NamedTuple):
    """A copy of a small output, whose sums are computed together with those of others of its shape."""

    values: Tensor  # (N, …)
    bounds: Saturation
    unit_dim: int | None


class Row(NamedTuple):
    """The sums of one small output, computed together with those of others of its shape; on the host."""

    block: ActivationSums  # (L,) or (L, units), of L calls
    row: int  # among them


class Mark:
    """What becomes of a call's output.

    Attributes:
        weighs: whether it is multiplied with something, or goes into a softmax.
        feeds: whether it goes into a layer.
    """

    __slots__ = ("feeds", "weighs")

    def __init__(self) -> None:
        self.weighs = self.feeds = False

    @property
    def is_gate(self) -> bool:
        """Whether it only weighs something: a gate, a soft cap, an attention score, a position bias."""
        return self.weighs and not self.feeds


class Call(NamedTuple):
    """One call of an activation."""

    layer: str
    samples: int
    numel: int
    # None for a layer that no reader wants, and in steps that are not recorded
    sums: ActivationSums | Row | Outputs | None
    unit_max: Tensor | None  # (units,): largest output of each unit, for rectifiers
    is_module: bool = True  # whether the layer is a module's own name
    behind: int | None = None  # tells apart the layers that produced what it was called with
    mark: Mark | None = None  # until the batch is over
    rank: Tensor | None = None  # 0-dimensional: effective rank, where a reader wants it

    def change_tensors(self, change: Change) -> Call:
        """The same with other tensors in its sums; what was computed together with others is on the host."""
        if not isinstance(self.sums, ActivationSums):
            return self
        fields: list[Any] = [None if one is None else change(one) for one in self.sums]
        return self._replace(sums=ActivationSums(*fields), rank=None if self.rank is None else change(self.rank))


class ActivationStep(NamedTuple):
    """A recorded step: its calls by name and, with several ranks, what these sent and what lies where."""

    step: int
    names: list[str]  # of all calls, in order of execution
    calls: list[tuple[str, Call]]  # of those that were measured
    ranks: tuple[Tensor, list[list[slice]]] | None

    def change_tensors(self, change: Change) -> ActivationStep:
        """The same with other tensors: those of all ranks, or the calls' sums."""
        if self.ranks:
            return self._replace(ranks=(change(self.ranks[0]), self.ranks[1]))
        return self._replace(calls=[(name, call.change_tensors(change)) for name, call in self.calls])


def describe(calls: list[tuple[str, Call]], where: list[list[slice]]) -> str:
    """What lies where in a rank's message."""
    return repr([(name, places) for (name, _), places in zip(calls, where, strict=True)])


class Merged(NamedTuple):
    """One layer's sums over calls and ranks, on the host."""

    samples: float
    moments: Moments
    absmax: float
    low: float | None
    high: float | None
    zeros: float | None
    magnitudes: Tensor | None  # (units,): sums of |a|
    active: Tensor | None  # (units,): the unit was positive somewhere
    ranks: tuple[float, ...]  # effective rank of each call, where it is known

    @property
    def outlier(self) -> float:
        """max|a| / rms; NaN where all outputs are 0."""
        return self.absmax / self.moments.rms if self.moments.rms else math.nan


def pack_calls(calls: list[tuple[str, Call]], device: torch.device) -> tuple[Tensor, list[list[slice]]]:
    """One vector of all calls' sums and sizes; for each call, the places of its fields, the sizes last."""
    if not calls:
        return torch.zeros(0, dtype=widest(device), device=device), []  # the dtype of other ranks' vectors
    sizes = torch.tensor([n for _, call in calls for n in (call.samples, call.numel)], dtype=torch.int64)
    fields = [
        [field for field in (*call.sums, call.rank) if field is not None]
        if isinstance(call.sums, ActivationSums)
        else []
        for _, call in calls
    ]
    vector, places = pack([*(tensor for one in fields for tensor in one), sizes.to(device)])
    first, position = places.pop().start, iter(places)
    return vector, [
        [*(next(position) for _ in one), slice(first + 2 * i, first + 2 * i + 2)] for i, one in enumerate(fields)
    ]


def split_ranks(ranks: Tensor) -> list[tuple[list[float], Tensor]]:
    """For each row of `ranks` (world_size, width), on the host, its values, also as they are."""
    return list(zip(ranks.tolist(), ranks, strict=True))


def merge_steps(steps: list[list[tuple[str, Call]]]) -> list[dict[str, Merged]]:
    """Each step's calls joined by layer, without other ranks."""
    calls = [call for step in steps for call in step]
    if not calls:
        return [{} for _ in steps]
    calls = with_sums(calls)
    assert isinstance(calls[0][1].sums, ActivationSums)
    vector, where = pack_calls(calls, calls[0][1].sums.mean.device)
    ranks, packed = split_ranks(vector.unsqueeze(0)), iter(zip(calls, where, strict=True))
    merged = []
    for step in steps:
        own = [next(packed) for _ in step]
        merged.append(merge([call for call, _ in own], [places for _, places in own], ranks))
    return merged


def reduce_outputs(calls: list[Call], scratch: Scratch) -> list[Call]:
    """The calls with their sums, where a copy of the output was kept: computed for all outputs of a shape in one pass.

    Args:
        calls: of any layers.
        scratch: buffers for it.
    """
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, call in enumerate(calls):
        if isinstance(call.sums, Outputs):
            values, bounds, unit_dim = call.sums
            groups[values.shape, values.dtype, bounds, unit_dim].append(index)
    done = list(calls)
    for (_, _, bounds, unit_dim), indices in groups.items():
        outputs = [calls[index].sums.values for index in indices]  # type: ignore[union-attr]
        block = sums_of_rows(outputs, bounds, unit_dim, scratch)
        for row, index in enumerate(indices):
            unit_max = None if block.unit_max is None else block.unit_max[row]
            done[index] = calls[index]._replace(sums=Row(block, row), unit_max=unit_max)
    return done


def blocks_of(calls: list[tuple[str, Call]]) -> list[tuple[ActivationSums, list[int], list[int]]] | None:
    """Calls of one step by the block that holds their sums; None where some have sums of their own, or share a name.

    Returns:
        for each block its sums, the rows that are the calls', and the places of the calls.
    """
    blocks: dict[int, tuple[ActivationSums, list[int], list[int]]] = {}
    for place, (_, call) in enumerate(calls):
        if not isinstance(call.sums, Row):
            return None
        _, rows, places = blocks.setdefault(id(call.sums.block), (call.sums.block, [], []))
        rows.append(call.sums.row)
        places.append(place)
    return list(blocks.values()) if len({name for name, _ in calls}) == len(calls) else None


def with_sums(calls: list[tuple[str, Call]]) -> list[tuple[str, Call]]:
    """The calls with sums of their own, where these lie among those of others."""
    blocks = {id(call.sums.block): call.sums.block for _, call in calls if isinstance(call.sums, Row)}
    rows = {key: split_rows(block) for key, block in blocks.items()}
    return [
        (name, call._replace(sums=rows[id(call.sums.block)][call.sums.row]) if isinstance(call.sums, Row) else call)
        for name, call in calls
    ]


def merge(
    calls: list[tuple[str, Call]], where: list[list[slice]], ranks: list[tuple[list[float], Tensor]]
) -> dict[str, Merged]:
    """Join sums of the same layer over accumulated batches and over `ranks`, as `split_ranks` gives them."""
    merged: dict[str, Merged] = {}
    for values, message in ranks:
        for (key, call), places in zip(calls, where, strict=True):
            one = _unpack(call, places, values, message)
            merged[key] = _join(merged[key], one) if key in merged else one
    return merged


def _unpack(call: Call, places: list[slice], values: list[float], message: Tensor) -> Merged:
    """One call's sums out of a rank's message, whose numbers are `values`."""
    assert isinstance(call.sums, ActivationSums)
    place = iter(places)
    at = {name: None if field is None else next(place) for name, field in call.sums._asdict().items()}
    units, unit_max = at.pop("unit_abs"), at.pop("unit_max")
    ranks = () if call.rank is None else (values[next(place).start],)
    one = {name: None if a is None else values[a.start] for name, a in at.items()}
    mean, rest, std, skew, kurtosis = (one[name] or 0.0 for name in ("mean", "rest", "std", "skew", "kurtosis"))
    samples, numel = values[places[-1]]
    squares = numel * std * std
    return Merged(
        samples=samples,
        moments=Moments(numel, mean + rest, squares, skew * squares * std, kurtosis * squares * std * std),
        absmax=largest(values[unit_max]) if unit_max is not None else one["absmax"],  # type: ignore[arg-type]
        low=one["low"],
        high=one["high"],
        zeros=None if one["nonzero"] is None else numel - one["nonzero"],
        magnitudes=None if units is None else message[units] * (numel / (units.stop - units.start)),
        active=None if unit_max is None else message[unit_max] > 0,
        ranks=ranks,
    )


def _join(a: Merged, b: Merged) -> Merged:
    def add(x: float | None, y: float | None) -> float | None:
        return None if x is None or y is None else x + y

    alike = a.magnitudes is not None and b.magnitudes is not None and a.magnitudes.shape == b.magnitudes.shape
    return Merged(
        samples=a.samples + b.samples,
        moments=a.moments.merge(b.moments),
        absmax=larger(a.absmax, b.absmax),
        low=add(a.low, b.low),
        high=add(a.high, b.high),
        zeros=add(a.zeros, b.zeros),
        magnitudes=a.magnitudes + b.magnitudes if alike else None,  # type: ignore[operator]
        ranks=a.ranks + b.ranks,
        active=a.active | b.active if alike and a.active is not None else None,  # type: ignore[operator]
    )


def largest(numbers: list[float]) -> float:
    """The largest number, and NaN if any is NaN, where `max` would take either."""
    return math.nan if math.isnan(sum(numbers)) else max(numbers)


def larger(a: float, b: float) -> float:
    """The larger number, and NaN if one is NaN, where `max` would take either."""
    return a if a >= b or math.isnan(a) else b
