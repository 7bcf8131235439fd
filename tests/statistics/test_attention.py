"""Sums over attention's logits against plain float64 loops, query by query."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bnlab_callbacks.statistics import attention as module_under_test
from bnlab_callbacks.statistics.attention import (
    DotProducts,
    Drawn,
    GivenLogits,
    Logits,
    attention_sums,
    draw_queries,
    join_sums,
)

LOWEST = torch.finfo(torch.float32).min
N, H, L, S, E = 3, 4, 5, 7, 8


def everything(logits: Logits) -> Drawn:
    sequences, _, queries, _ = logits.shape
    return [(sequence, list(range(queries))) for sequence in range(sequences)]


def by_hand(logits: Any, allowed: Any, drawn: Drawn) -> Any:
    """The definitions, (9, H); `logits` (N, H, L, S), `allowed` (N, H, L, S)."""
    sums = np.zeros((9, logits.shape[1]))
    sums[0] = -math.inf
    for n, h, i in np.ndindex(logits.shape[:3]):
        keys = allowed[n, h, i]
        z = logits[n, h, i][keys]
        sums[6:, h] += len(z) == 1, len(z) == 0, 1
        if len(z):
            sums[0, h] = max(sums[0, h], z.max())
        if i in dict(drawn).get(n, []) and len(z) > 1:
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            sums[1:3, h] += -sum(each * math.log(each) for each in p if each) / math.log(len(z)), 1
            if keys[0]:
                sums[3:6, h] += p[0], 1 / len(z), 1
    return sums


def scores(query: Tensor, key: Tensor, scale: float) -> Any:
    """q·k · scale in float64, (N, H, L, S), a key's head being that of some neighbouring queries' heads."""
    q, k = query.double().numpy(), key.double().numpy()
    return np.einsum("nhle,nhse->nhls", q, np.repeat(k, q.shape[1] // k.shape[1], 1)) * scale


def padding(lengths: list[int], keys: int = S) -> Tensor:
    """(N, 1, 1, S), True for the first keys of each sequence."""
    return (torch.arange(keys) < torch.tensor(lengths)[:, None])[:, None, None]


def tensors(kv_heads: int = H, queries: int = L, size: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(N, H, queries, E, generator=generator) * size
    return query, torch.randn(N, kv_heads, S, E, generator=generator)


MASKS: dict[str, tuple[Tensor | None, bool, Any]] = {
    "none": (None, False, np.ones((1, 1, L, S), bool)),
    "causal": (None, True, np.tri(L, S, dtype=bool)[None, None]),
    "padded": (padding([7, 1, 0]), False, padding([7, 1, 0]).numpy()),
    "padded on the left": (padding([4, 6, 7]).logical_not(), False, padding([4, 6, 7]).logical_not().numpy()),
    "each query its own": (torch.ones(L, S).tril(1).bool()[None, None], False, np.tri(L, S, 1, dtype=bool)[None, None]),
}


@pytest.mark.parametrize("block", [1, 60, 1 << 20], ids=["row by row", "some rows", "at once"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("name", MASKS)
def test_sums_equal_the_definitions(name: str, kv_heads: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "_CPU_BLOCK", block)
    mask, causal, allowed = MASKS[name]
    query, key = tensors(kv_heads)
    logits = DotProducts(query, key, mask, causal, 0.3)
    drawn = [(0, [0, 2, 3]), (1, [1, 2, 4]), (2, [0, 1, 2])]
    wanted = by_hand(scores(query, key, 0.3), np.broadcast_to(allowed, (N, H, L, S)), drawn)
    np.testing.assert_allclose(attention_sums(logits, drawn), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("masked", [LOWEST, -math.inf, LOWEST / 2, -1e4])
def test_what_is_added_is_a_mask_from_half_of_the_lowest_float_on(masked: float) -> None:
    """A bias, as T5's, counts as a part of the logits; −10,000 does, too, though nothing is left of such a key."""
    query, key = tensors()
    bias = torch.randn(1, H, L, S)
    bias[:, :, 1:3, 2:5] = masked
    allowed = np.broadcast_to(bias.numpy() > LOWEST / 2, (N, H, L, S))
    logits = DotProducts(query, key, bias, False, 0.3)
    wanted = by_hand(scores(query, key, 0.3) + bias.double().numpy(), allowed, everything(logits))
    np.testing.assert_allclose(attention_sums(logits, everything(logits)), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("queries", [3, 12])
def test_causal_with_another_number_of_queries_than_keys(queries: int) -> None:
    """As `scaled_dot_product_attention` has it: query i sees the keys up to i, from the first ones on."""
    query, key = tensors(queries=queries)
    logits = DotProducts(query, key, None, True, 0.3)
    allowed = np.broadcast_to(np.tri(queries, S, dtype=bool), (N, H, queries, S))
    wanted = by_hand(scores(query, key, 0.3), allowed, everything(logits))
    np.testing.assert_allclose(attention_sums(logits, everything(logits)), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    query, key = (each.to(dtype) for each in tensors())
    mask = torch.zeros(1, 1, L, S, dtype=dtype)
    mask[..., 3:] = torch.finfo(dtype).min
    logits = DotProducts(query, key, mask, False, 0.3)
    allowed = np.broadcast_to(np.arange(S) < 3, (N, H, L, S))
    with torch.autocast("cpu", torch.bfloat16):
        sums = attention_sums(logits, everything(logits))
    assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(sums, by_hand(scores(query, key, 0.3), allowed, everything(logits)), rtol=2e-6)
    given = GivenLogits(((query @ key.transpose(-1, -2)) * 0.3 + mask).to(dtype))
    z = given.logits.double().numpy()
    np.testing.assert_allclose(
        attention_sums(given, everything(given)), by_hand(z, allowed, everything(given)), rtol=2e-6, atol=1e-6
    )


def test_logits_as_large_as_they_get_before_training_breaks() -> None:
    query, key = tensors(size=3e4)
    logits = DotProducts(query, key, None, False, 1.0)
    wanted = by_hand(scores(query, key, 1.0), np.ones((N, H, L, S), bool), everything(logits))
    sums = attention_sums(logits, everything(logits))
    np.testing.assert_allclose(sums, wanted, rtol=1e-5, atol=1e-5)
    assert float(sums[1].sum()) < 0.01  # collapsed


def test_even_attention_has_an_entropy_of_1_and_nan_shows() -> None:
    even = attention_sums(GivenLogits(torch.zeros(1, 1, 2, 4)), [(0, [0, 1])])
    assert even[:, 0].tolist() == pytest.approx([0, 2, 2, 0.5, 0.5, 2, 0, 0, 2], rel=1e-6)
    broken = attention_sums(GivenLogits(torch.full((1, 1, 2, 4), math.nan)), [(0, [0, 1])])
    assert broken[:2, 0].isnan().all()


def test_drawn_queries_are_one_of_each_part() -> None:
    for seed in range(20):
        drawn = draw_queries(8, 160, Random(seed))
        assert [sequence // 2 for sequence, _ in drawn] == [0, 1, 2, 3]
        for _, queries in drawn:
            assert [query // 10 for query in queries] == list(range(16))
        assert len({tuple(queries) for _, queries in drawn}) == 4  # another draw for each sequence
        assert draw_queries(8, 160, Random(seed)) == drawn
    assert draw_queries(2, 3, Random(0)) == [(0, [0, 1, 2]), (1, [0, 1, 2])]


@pytest.mark.parametrize("number", [17, 40])
def test_every_query_is_drawn_equally_often_whatever_their_number(number: int) -> None:
    counts = np.zeros(number)
    for seed in range(4000):
        for query in draw_queries(1, number, Random(seed))[0][1]:
            counts[query] += 1
    assert counts / 4000 == pytest.approx(np.full(number, 16 / number), rel=0.15)


def test_what_is_drawn_is_near_the_mean_over_all() -> None:
    """A causal model whose attention grows sharper along the sequence: the same rows of each would be off alike."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(8, 4, 128, 16, generator=generator) * torch.linspace(0.1, 3, 128)[:, None]
    logits = DotProducts(query, torch.randn(8, 4, 128, 16, generator=generator), None, True, 0.25)
    whole = attention_sums(logits, everything(logits)).sum(1)
    errors = []
    for seed in range(20):
        drawn = attention_sums(logits, draw_queries(8, 128, Random(seed))).sum(1)
        errors.append(abs(float(drawn[1] / drawn[2] / (whole[1] / whole[2])) - 1))
        assert drawn[8] == whole[8]
    assert float(np.mean(errors)) < 0.03


def test_sums_of_parts_join_to_those_of_the_whole() -> None:
    query, key = tensors()
    whole = DotProducts(query, key, padding([7, 1, 0]), False, 0.3)
    parts = [
        DotProducts(query[n : n + 1], key[n : n + 1], padding([keys]), False, 0.3) for n, keys in enumerate([7, 1, 0])
    ]
    sums = [attention_sums(part, everything(part)) for part in parts]
    joined = join_sums(join_sums(sums[0], sums[1]), sums[2])
    torch.testing.assert_close(joined, attention_sums(whole, everything(whole)))
