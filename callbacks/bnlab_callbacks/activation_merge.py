"""Join the sums of calls over accumulated batches and over ranks. Functions of tensors; the collective is elsewhere."""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from bnlab_callbacks.activation_hooks import Call
from bnlab_callbacks.activation_statistics import ActivationSums, Moments
from bnlab_callbacks.scalars import pack, widest


def layout(calls: list[tuple[str, Call]], where: list[list[slice]]) -> int:
    """A check sum of what lies where in a rank's message, small enough to be exact in float32."""
    described = [(key, places) for (key, _), places in zip(calls, where, strict=True)]
    return zlib.crc32(repr(described).encode()) % 2**23


class Merged(NamedTuple):
    """One layer's sums over calls and ranks, on the host."""

    samples: float
    moments: Moments
    absmax: float
    low: float | None
    high: float | None
    zeros: float | None
    active: Tensor | None


def pack_calls(calls: list[tuple[str, Call]], device: torch.device) -> tuple[Tensor, list[list[slice]]]:
    """One vector of all calls' sums and sizes; for each call, the places of its fields, the sizes last."""
    if not calls:
        return torch.zeros(0, dtype=widest(device), device=device), []  # the dtype of other ranks' vectors
    sizes = torch.tensor([[call.samples, call.numel] for _, call in calls], dtype=torch.int64).to(device)
    fields = [
        [*(field for field in (call.sums or ()) if field is not None), sizes[i]] for i, (_, call) in enumerate(calls)
    ]
    vector, places = pack([tensor for one in fields for tensor in one])
    position = iter(places)
    return vector, [[next(position) for _ in one] for one in fields]


def merge(calls: list[tuple[str, Call]], where: list[list[slice]], ranks: Tensor) -> dict[str, Merged]:
    """Join sums of the same layer over accumulated batches and over the rows of `ranks` (world_size, width)."""
    merged: dict[str, Merged] = {}
    for row, values in zip(ranks > 0, ranks.tolist(), strict=True):
        for (key, call), places in zip(calls, where, strict=True):
            one = _unpack(call, places, values, row)
            merged[key] = _join(merged[key], one) if key in merged else one
    return merged


def _unpack(call: Call, places: list[slice], values: list[float], positive: Tensor) -> Merged:
    """One call's sums out of a rank's message: `values`, and which of them are `positive`."""
    assert call.sums is not None
    fields = [name for name, field in zip(ActivationSums._fields, call.sums, strict=True) if field is not None]
    at = dict(zip(fields, places[:-1], strict=True))

    def number(name: str) -> float | None:
        return values[at[name].start] if name in at else None

    samples, numel = values[places[-1]]
    mean, rest, spread, absmax = (values[at[name].start] for name in ("mean", "rest", "spread", "absmax"))
    return Merged(
        samples=samples,
        moments=Moments(numel, mean + rest, spread * spread),
        absmax=absmax,
        low=number("low"),
        high=number("high"),
        zeros=number("zeros"),
        active=positive[at["active"]] if "active" in at else None,
    )


def _join(a: Merged, b: Merged) -> Merged:
    def add(x: float | None, y: float | None) -> float | None:
        return None if x is None or y is None else x + y

    return Merged(
        samples=a.samples + b.samples,
        moments=a.moments.merge(b.moments),
        absmax=larger(a.absmax, b.absmax),
        low=add(a.low, b.low),
        high=add(a.high, b.high),
        zeros=add(a.zeros, b.zeros),
        active=None if a.active is None or b.active is None else a.active | b.active,
    )


def larger(a: float, b: float) -> float:
    """The larger number, and NaN if one is NaN, where `max` would take either."""
    return a if a >= b or math.isnan(a) else b
