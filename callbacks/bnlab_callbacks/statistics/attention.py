"""Statistics of attention: largest logit, entropy, and the share of the first key. Pure functions of a call's tensors.

Softmax turns a query's logits z_j over its n allowed keys into weights p_j. Their entropy −Σ p_j ln p_j lies between 0
(all attention on one key) and ln n (on all alike); relative to ln n it tells collapse (Zhai et al. 2023, Stabilizing
Transformer Training by Preventing Attention Entropy Collapse, arXiv 2303.06296). Logits that grow from step to step
come before it (Dehghani et al. 2023, arXiv 2302.05442). The first key often takes what no other is to have: an
attention sink (Xiao et al. 2024, Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453).
"""

import math
from random import Random
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bnlab_callbacks.statistics.chunks import wide_dtype

# sequences of a call, and queries of each, whose entropy is taken: 1 to 10 % off the mean over all
SEQUENCES, QUERIES = 4, 16
# logits at a time: 4 MiB of float32, or 64 MiB where long kernels are wanted
_CPU_BLOCK, _ACCELERATOR_BLOCK = 1 << 20, 1 << 24

# the rows of a call's sums, each (heads,): one maximum, and sums
LOGIT_MAX, ENTROPY, WITH_ENTROPY, FIRST, EVEN, WITH_FIRST, ONE_KEY, NO_KEY, ROWS = range(9)

Drawn = list[tuple[int, list[int]]]  # sequences, and queries of each


class Logits(Protocol):
    """What softmax is given in one call of attention: N sequences, H heads, L queries, S keys."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, L, S)."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    def block(self, sequences: slice, queries: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        """Some of the logits, (n, H, l, s), in float32 or wider, −∞ where a key is masked, and which keys are allowed.

        These are (n or 1, H or 1, l or 1, s), bool; None where all are. Keys behind s are allowed to none of the
        queries.
        """


class DotProducts(NamedTuple):
    """Logits that are q·k · scale + mask, and are computed when they are asked for."""

    query: Tensor  # (N, H, L, E)
    key: Tensor  # (N or 1, H or a divisor of it, S, E)
    mask: Tensor | None  # (N or 1, H or 1, L or 1, S), bool (True: allowed) or added
    causal: bool  # query i sees the keys up to i
    scale: float

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, L, S)."""
        sequences, heads, queries, _ = self.query.shape
        return sequences, heads, queries, self.key.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the queries are."""
        return self.query.device

    def block(self, sequences: slice, queries: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Logits`."""
        _, heads, length, keys = self.shape
        last = keys
        if self.causal and isinstance(queries, slice):
            last = min(keys, min(queries.stop, length))
        key = self.key[sequences if self.key.shape[0] > 1 else slice(None), :, :last]
        key = key.repeat_interleave(heads // key.shape[1], 1).to(wide_dtype(key))
        query = self.query[sequences, :, queries]
        logits = (query.to(key.dtype) * self.scale) @ key.transpose(-1, -2)
        allowed = None
        if self.mask is not None:
            mask = self.mask[sequences if self.mask.shape[0] > 1 else slice(None)][..., :last]
            mask = mask[:, :, queries] if mask.shape[2] > 1 else mask
            allowed = is_allowed(mask)
            if mask.dtype != torch.bool:
                logits += mask
        if self.causal:
            places = torch.arange(length, device=self.device)[queries]
            allowed = torch.arange(last, device=self.device) <= places[:, None]
            allowed = allowed[None, None]
        return logits if allowed is None else logits.masked_fill_(~allowed, -math.inf), allowed


class GivenLogits(NamedTuple):
    """Logits that are there, masks added."""

    logits: Tensor  # (N, H, L, S)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, L, S)."""
        sequences, heads, queries, keys = self.logits.shape
        return sequences, heads, queries, keys

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.logits.device

    def block(self, sequences: slice, queries: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Logits`."""
        logits = self.logits[sequences, :, queries]
        allowed = is_allowed(logits)
        return logits.to(wide_dtype(logits)).masked_fill(~allowed, -math.inf), allowed


def is_allowed(mask: Tensor) -> Tensor:
    """Where a mask, or masked logits, let through: True, or a float above half of its dtype's lowest, or NaN.

    Half of the lowest, since many write the lowest float for −∞, and logits are added to it.
    """
    return mask if mask.dtype == torch.bool else ~(mask <= torch.finfo(mask.dtype).min / 2)


def draw_queries(sequences: int, queries: int, draw: Random) -> Drawn:
    """Some queries of some sequences, at random, each with the same probability; all, where there are no more.

    They are one of each equal part of the batch, and of the sequence with another draw for each. Where the parts are no
    whole numbers, neighbouring ones may give the same.
    """
    return [(one, _one_of_each_part(queries, QUERIES, draw)) for one in _one_of_each_part(sequences, SEQUENCES, draw)]


def _one_of_each_part(number: int, parts: int, draw: Random) -> list[int]:
    if number <= parts:
        return list(range(number))
    return [min(int((part + draw.random()) * number / parts), number - 1) for part in range(parts)]


def attention_sums(logits: Logits, drawn: Drawn) -> Tensor:
    """What one call leaves, (9, H), in float32 or wider: a maximum, and sums over queries, for each head.

    Row `LOGIT_MAX` is exact: over all queries and the keys allowed to them. So are the numbers `ONE_KEY`, `NO_KEY` and
    `ROWS`: of the queries with one allowed key, with none, and of all. `ENTROPY`, relative to ln n, and its number
    `WITH_ENTROPY` are over the drawn queries with two allowed keys or more. `FIRST`, the weight of key 0, `EVEN`, 1/n,
    and their number are over those of them that may see key 0.

    Args:
        logits: of the call; none of N, H, L, S is 0.
        drawn: the queries whose entropy is taken, as many of each sequence.
    """
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        largest, counts = _over_all(logits)
        return torch.cat([largest[None], _over_drawn(logits, drawn), counts.to(largest.dtype)])


def _over_all(logits: Logits) -> tuple[Tensor, Tensor]:
    """The largest logit (H,), and numbers of queries with one key, with none, and of all (3, H)."""
    sequences, heads, queries, keys = logits.shape
    most = _CPU_BLOCK if logits.device.type == "cpu" else _ACCELERATOR_BLOCK
    together = max(1, min(sequences, most // (heads * queries * keys)))
    rows = max(1, min(queries, most // (heads * keys)))
    largest, counts = [], []
    for start in range(0, sequences, together):
        for first in range(0, queries, rows):
            some = slice(start, min(start + together, sequences)), slice(first, min(first + rows, queries))
            block, allowed = logits.block(*some)
            largest.append(block.amax((0, 2, 3)))
            counts.append(_counts(block, allowed))
    return torch.stack(largest).amax(0), torch.stack(counts).sum(0)


def _counts(block: Tensor, allowed: Tensor | None) -> Tensor:
    sequences, heads, queries, keys = block.shape
    rows = torch.full((heads,), sequences * queries, device=block.device)
    if allowed is None:
        none = torch.zeros_like(rows)
        return torch.stack([rows if keys == 1 else none, none, rows])
    number = allowed.sum(-1).expand(sequences, heads, queries)
    return torch.stack([(number == 1).sum((0, 2)), (number == 0).sum((0, 2)), rows])


def _over_drawn(logits: Logits, drawn: Drawn) -> Tensor:
    """Sums over the drawn queries, (5, H)."""
    indices = torch.tensor([queries for _, queries in drawn], device=logits.device)
    return torch.stack(
        [
            _sums_of(*logits.block(slice(sequence, sequence + 1), queries))
            for (sequence, _), queries in zip(drawn, indices, strict=True)
        ]
    ).sum(0)


def _sums_of(block: Tensor, allowed: Tensor | None) -> Tensor:
    if allowed is None:
        allowed = torch.ones_like(block[:1, :1, :1], dtype=torch.bool)
    number = allowed.sum(-1).expand(block.shape[:-1])
    logs = torch.log_softmax(block, -1)
    weights = logs.exp()
    # a masked key has weight 0 and the logarithm −∞
    entropy = -(weights * logs.masked_fill(~allowed, 0)).sum(-1) / number.clamp_min(2).log()
    several = number > 1
    first = several & allowed[..., 0].expand_as(several)
    rows = [
        entropy.where(several, 0),
        several.to(entropy.dtype),
        weights[..., 0].where(first, 0),
        (1 / number.clamp_min(1)).where(first, 0),
        first.to(entropy.dtype),
    ]
    return torch.stack([row.sum((0, 2)) for row in rows])


def join_sums(a: Tensor, b: Tensor) -> Tensor:
    """The sums (9, H) of two sets of calls together."""
    return torch.cat([torch.maximum(a[:1], b[:1]), a[1:] + b[1:]])
