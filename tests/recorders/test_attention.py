"""The recorder of attention: every way to compute it gives the same record, that of attention by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.core.shared import SharedRecorders
from bnlab_callbacks.recorders.attention import AttentionRecorder, AttentionStep
from bnlab_callbacks.recorders.attention_calls import logits_of_call
from bnlab_callbacks.recorders.attention_tables import AttentionTables
from bnlab_callbacks.recorders.unseen import EVALUATION, NO_GRADIENT

LOWEST = torch.finfo(torch.float32).min


class Reader:
    """A reader of all steps."""

    def __init__(self, layers: tuple[str, ...] | None = None) -> None:
        self.steps: list[AttentionStep] = []
        self.layers = layers

    def due(self, moment: Moment, stream: str = "") -> bool:
        return True

    def mark(self, moment: Moment, stream: str = "") -> None:
        pass

    def wants(self, layer: str) -> bool:
        return self.layers is None or layer in self.layers

    def take(self, moment: Moment, left: AttentionStep, seconds: float) -> None:
        self.steps.append(left)

    def recorder_failed(self, reason: str) -> None:
        raise AssertionError(reason)


def recorded(
    model: nn.Module, *batches: Any, ranks: Ranks | None = None, heads: bool = False
) -> tuple[dict[str, float], AttentionRecorder]:
    """The record of one step of these batches, and the recorder."""
    reader = Reader()
    recorder = SharedRecorders(ranks or Ranks()).join(AttentionRecorder, reader, model)
    for index, batch in enumerate(batches):
        recorder.begin_batch(Moment(0, 0), 0)
        loss = model(*batch).sum()
        recorder.before_backward()
        loss.backward()
        recorder.after_backward()
        recorder.end_batch(Moment(0, 0), int(index == len(batches) - 1))
    recorder.leave(reader)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not torch.overrides._get_current_function_mode_stack()
    tables = AttentionTables(heads=heads)
    values = [dict(zip(table.tags, *table.values.tolist(), strict=True)) for table in tables.read(reader.steps)]
    return (values[0] if values else {}), recorder


class Attention(nn.Module):
    """Self-attention of 4 heads over (N, T, 16), computed in one of several ways, always with the same weights."""

    def __init__(self, way: str, heads: int = 4, kv_heads: int = 4) -> None:
        super().__init__()
        self.way, self.heads, self.kv_heads = way, heads, kv_heads
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.q, self.k, self.v = (nn.Linear(16, size * 4) for size in (heads, kv_heads, kv_heads))
        with torch.no_grad():
            self.q.weight *= 5
        self.softmax = nn.Softmax(-1)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, 4)).transpose(1, 2) for each in (self.q, self.k, self.v))
        if self.way == "sdpa":
            options = {"enable_gqa": True} if self.kv_heads < self.heads else {}
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, **options)
        if causal:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        logits = q @ k.repeat_interleave(self.heads // self.kv_heads, 1).transpose(-1, -2) / 2
        if mask is not None:
            logits = logits.masked_fill(~mask, LOWEST) if mask.dtype == torch.bool else logits + mask
        weights = {
            "F.softmax": lambda: F.softmax(logits, dim=-1),
            "torch.softmax": lambda: torch.softmax(logits, 3),
            "x.softmax": lambda: logits.softmax(-1),
            "nn.Softmax": lambda: self.softmax(logits),
        }[self.way]()
        return F.dropout(weights) @ v.repeat_interleave(self.heads // self.kv_heads, 1)


class Net(nn.Module):
    """Attention within something else."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed, self.block = nn.Linear(8, 16), nn.ModuleDict({"attn": attention})
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.embed.reset_parameters()

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        out: Tensor = self.block["attn"](self.embed(x), *more)
        return out


def inputs(samples: int = 3, length: int = 6, seed: int = 2) -> Tensor:
    return torch.randn(samples, length, 8, generator=torch.Generator().manual_seed(seed))


def by_hand(logits: Tensor, allowed: Tensor, name: str = "00_block.attn") -> dict[str, float]:
    """The record of logits (N, H, L, S) in float64, where these keys are allowed."""
    z = logits.detach().double().masked_fill(~allowed, -math.inf)
    n = allowed.expand_as(z).sum(-1)
    p = z.softmax(-1)
    entropies = torch.special.entr(p).sum(-1)[n > 1] / n[n > 1].log()
    first = (n > 1) & allowed.expand_as(z)[..., 0]
    return {
        f"attn_logit_max/{name}": float(z.max()),
        f"attn_entropy/{name}": float(entropies.mean()),
        f"attn_first/{name}": float(p[..., 0][first].mean()),
        f"attn_first_even/{name}": float((1 / n)[first].mean()),
        f"attn_one_key_frac/{name}": float((n == 1).double().mean()),
        f"attn_no_key_frac/{name}": float((n == 0).double().mean()),
    }


def logits_of(net: Net, x: Tensor) -> Tensor:
    """What softmax is given, without masks."""
    attention: Any = net.block["attn"]
    embedded = net.embed(x)
    q, k = (each(embedded).double().unflatten(-1, (-1, 4)).transpose(1, 2) for each in (attention.q, attention.k))
    return q @ k.repeat_interleave(attention.heads // attention.kv_heads, 1).transpose(-1, -2) / 2


PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
MASKS: dict[str, tuple[Tensor | None, bool, Tensor]] = {
    "none": (None, False, torch.ones(6, 6).bool()),
    "causal": (None, True, torch.ones(6, 6).tril().bool()),
    "padded": (PADDED[:, None, None], False, PADDED[:, None, None]),
    "added": (torch.zeros(3, 1, 1, 6).masked_fill(~PADDED[:, None, None], LOWEST), False, PADDED[:, None, None]),
}


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("way", ["sdpa", "F.softmax", "torch.softmax", "x.softmax", "nn.Softmax"])
def test_every_way_and_mask_gives_attention_by_hand(way: str, mask: str, kv_heads: int) -> None:
    given, causal, allowed = MASKS[mask]
    net, x = Net(Attention(way, kv_heads=kv_heads)), inputs()
    record, recorder = recorded(net, (x, given, causal))
    assert record == pytest.approx(by_hand(logits_of(net, x), allowed), rel=2e-6, abs=1e-7)
    assert (recorder.unseen.seen, recorder.unseen.lines()) == (["block.attn"], {})


def test_a_query_without_any_allowed_key_is_left_out_and_counted() -> None:
    mask = PADDED.clone()
    mask[2] = False
    net, x = Net(Attention("F.softmax")), inputs()
    record, _ = recorded(net, (x, mask[:, None, None]))
    assert record["attn_no_key_frac/00_block.attn"] == pytest.approx(1 / 3)
    assert record == pytest.approx(by_hand(logits_of(net, x), mask[:, None, None]), rel=2e-6)


def test_each_head_on_request() -> None:
    net, x = Net(Attention("sdpa")), inputs()
    record, _ = recorded(net, (x,), heads=True)
    everything = torch.ones(6, 6).bool()
    for head in range(4):
        name = f"00_block.attn.head{head}"
        wanted = by_hand(logits_of(net, x)[:, head : head + 1], everything, name)
        wanted = {tag: value for tag, value in wanted.items() if "_frac" not in tag}
        assert {tag: record[tag] for tag in wanted} == pytest.approx(wanted, rel=2e-6)
    assert len(record) == 6 + 4 * 4


# nn.MultiheadAttention tells its weights, of which the entropy is computed here


def as_mask(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)


CAUSAL = torch.ones(6, 6).tril().bool()
MULTI_HEAD: dict[str, tuple[dict[str, Any], dict[str, Any], Tensor]] = {
    "plain": ({}, {}, torch.ones(6, 6).bool()),
    "without weights": ({}, {"need_weights": False}, torch.ones(6, 6).bool()),
    "batch last": ({"batch_first": False}, {}, torch.ones(6, 6).bool()),
    "no bias": ({"bias": False}, {}, torch.ones(6, 6).bool()),
    "padded": ({}, {"key_padding_mask": ~PADDED}, PADDED[:, None, None]),
    "padding added": ({}, {"key_padding_mask": as_mask(PADDED)}, PADDED[:, None, None]),
    "masked": ({}, {"attn_mask": ~CAUSAL}, CAUSAL),
    "mask added": ({}, {"attn_mask": as_mask(CAUSAL)}, CAUSAL),
    "causal": ({}, {"attn_mask": ~CAUSAL, "is_causal": True, "need_weights": False}, CAUSAL),
    "a mask for each head": ({}, {"attn_mask": (~CAUSAL).expand(12, 6, 6)}, CAUSAL),
    "both masks": ({}, {"attn_mask": ~CAUSAL, "key_padding_mask": ~PADDED}, CAUSAL & PADDED[:, None, None]),
    "key and value of their own": ({"add_bias_kv": True}, {}, torch.ones(6, 7).bool()),
    "zeros appended, padded": (
        {"add_zero_attn": True},
        {"key_padding_mask": ~PADDED},
        F.pad(PADDED, (0, 1), value=True)[:, None, None],
    ),
    "other keys": ({"kdim": 10, "vdim": 12}, {}, torch.ones(6, 6).bool()),
}


class Multi(nn.Module):
    def __init__(self, options: dict[str, Any], call: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(16, 4, **({"batch_first": True} | options))
        self.first, self.call = self.attn.batch_first, call
        self.weights = torch.zeros(0)

    def forward(self, *given: Tensor) -> Tensor:
        out, weights = self.attn(*given, **({"average_attn_weights": False} | self.call))
        if weights is not None:
            self.weights = weights.detach()
        return out  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MULTI_HEAD)
def test_multihead_attention_in_all_its_forms(name: str) -> None:
    options, call, allowed = MULTI_HEAD[name]
    net = Multi(options, call)
    if net.attn.bias_k is not None:
        nn.init.normal_(net.attn.bias_k)  # it is tiny
    query = torch.randn(3, 6, 16) * 3
    given = [query, torch.randn(3, 6, 10), torch.randn(3, 6, 12)] if "kdim" in options else [query] * 3
    given = [each if net.first else each.transpose(0, 1) for each in given]
    record, _ = recorded(net, given)
    if not net.weights.numel():  # the fused kernel gives none
        net.call = {key: value for key, value in call.items() if key not in ("need_weights", "is_causal")}
        net(*given)
    wanted = by_hand(net.weights.double().log(), allowed, "00_attn")  # softmax of ln p is p
    del wanted["attn_logit_max/00_attn"]
    assert {tag: record[tag] for tag in wanted} == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_multihead_attention_has_the_largest_logit_of_its_projections() -> None:
    net = Multi({}, {})
    x = torch.randn(3, 6, 16) * 3
    record, _ = recorded(net, (x, x, x))
    q, k, _ = F.linear(x, net.attn.in_proj_weight, net.attn.in_proj_bias).double().chunk(3, -1)
    logits = q.unflatten(-1, (4, 4)).transpose(1, 2) @ k.unflatten(-1, (4, 4)).permute(0, 2, 3, 1) / 2
    assert record["attn_logit_max/00_attn"] == pytest.approx(float(logits.detach().max()), rel=2e-6)


def test_multihead_attention_of_one_sequence() -> None:
    net = Multi({}, {})
    x = torch.randn(6, 16)
    single, _ = recorded(net, (x, x, x))
    batch, _ = recorded(net, (x[None], x[None], x[None]))
    assert single == pytest.approx(batch, rel=1e-6)


@pytest.mark.parametrize("ndim", [2, 3, 5])
def test_scaled_dot_products_of_other_numbers_of_dimensions(ndim: int) -> None:
    """(L, E), (N, L, E) with one head, (A, B, H, L, E)."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q * self.scale, k, k, mask, scale=0.7)

    shape = {2: (), 3: (3,), 5: (2, 3, 4)}[ndim]
    q, k, mask = torch.randn(*shape, 6, 4), torch.randn(*shape, 5, 4), torch.randn(*shape[:1], *(1,) * (ndim - 3), 6, 5)
    record, _ = recorded(Bare(), (q, k, mask))
    logits = (2 * q @ k.transpose(-1, -2) * 0.7 + mask).reshape(-1, 4 if ndim == 5 else 1, 6, 5)
    wanted = by_hand(logits, torch.ones(6, 5).bool(), "00_Bare")
    sampled = {"attn_entropy/00_Bare", "attn_first/00_Bare"} if ndim == 5 else set()  # of 4 of 6 sequences
    for tag in wanted.keys() - sampled:
        assert record[tag] == pytest.approx(wanted[tag], rel=2e-6)
    for tag in sampled:
        assert record[tag] == pytest.approx(wanted[tag], rel=0.2)


def test_keys_and_masks_that_are_broadcast() -> None:
    class Bare(nn.Module):
        def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k, mask)

    q, k = torch.randn(3, 4, 6, 4, requires_grad=True), torch.randn(1, 1, 5, 4)
    for mask in (torch.ones(5).bool(), torch.randn(4, 1, 5), torch.randn(3, 1, 6, 1)):
        record, _ = recorded(Bare(), (q, k, mask))
        bias = torch.zeros(()) if mask.dtype == torch.bool else mask
        logits = q @ k.transpose(-1, -2) / 2 + bias
        assert record == pytest.approx(by_hand(logits, torch.ones(6, 5).bool(), "00_Bare"), rel=2e-6, abs=1e-7)


# what counts


def test_softmax_elsewhere_is_no_attention() -> None:
    class Mixer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(-1)

    class SelfAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(1) + x.sum(1).softmax(-1).sum()  # not over the keys; of two dimensions

    for module in (Mixer(), SelfAttention()):
        record, recorder = recorded(module, (torch.randn(2, 3, 3, requires_grad=True),))
        assert (record, recorder.unseen.seen, recorder.unseen.lines()) == ({}, [], {})


def test_a_module_s_own_name_tells_too_and_one_called_twice_has_two_tags() -> None:
    class Mixer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(-1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cross_attention = Mixer()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.cross_attention(self.cross_attention(x))
            return out

    record, _ = recorded(Twice(), (torch.randn(2, 4, 3, 3, requires_grad=True),))
    names = {tag.partition("/")[2] for tag in record}
    assert names == {"00_cross_attention", "01_cross_attention.2"}


def test_evaluation_mode_and_forward_passes_without_gradients_do_not_count() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher, self.frozen = (Net(Attention("sdpa")) for _ in range(3))
            self.frozen.eval()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                target = self.teacher(x)
            out: Tensor = self.student(x) - target - self.frozen(x)
            return out

    record, recorder = recorded(Both(), (inputs(),))
    assert {tag.partition("/")[2] for tag in record} == {"00_student.block.attn"}
    assert recorder.unseen.lines() == {
        NO_GRADIENT: "1 layer runs without gradients: not recorded (teacher.block.attn)",
        EVALUATION: "1 layer runs in evaluation mode: not recorded (frozen.block.attn)",
    }


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_counts_once(reentrant: bool) -> None:
    class Checkpointed(Net):
        def forward(self, x: Tensor, *more: Any) -> Tensor:
            out: Tensor = checkpoint(self.block["attn"], self.embed(x), use_reentrant=reentrant)
            return out

    net, x = Checkpointed(Attention("sdpa")), inputs()
    record, recorder = recorded(net, (x,))
    assert record == pytest.approx(by_hand(logits_of(net, x), torch.ones(6, 6).bool()), rel=2e-6, abs=1e-7)
    assert recorder.unseen.lines() == {}


def test_accumulated_batches_are_one_record() -> None:
    net, x = Net(Attention("sdpa")), inputs(4)
    record, _ = recorded(net, (x[:1],), (x[1:],))
    assert record == pytest.approx(by_hand(logits_of(net, x), torch.ones(6, 6).bool()), rel=2e-6, abs=1e-7)


class Exchange:
    """Stands for the exchange with one other rank, whose messages are known."""

    def __init__(self, others: list[Tensor] | None = None) -> None:
        self.sent: list[Tensor] = []
        self.others = others

    def __call__(self, tensor: Tensor) -> Tensor:
        self.sent.append(tensor)
        return torch.stack([tensor, tensor if self.others is None else self.others[len(self.sent) - 1]])


def on_two_ranks(net: nn.Module, first: Any, second: Any) -> dict[str, float]:
    there = Exchange()
    recorded(net, second, ranks=Ranks(2, all_gather=there))
    return recorded(net, first, ranks=Ranks(2, all_gather=Exchange(there.sent)))[0]


def test_two_ranks_are_those_of_the_whole_batch() -> None:
    net, x = Net(Attention("sdpa")), inputs(4)
    wanted = by_hand(logits_of(net, x), torch.ones(6, 6).bool())
    assert on_two_ranks(net, (x[:1],), (x[1:],)) == pytest.approx(wanted, rel=2e-6, abs=1e-7)


def test_a_call_that_cannot_be_understood_is_named_and_the_rest_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad, self.good = Net(Attention("sdpa")), Net(Attention("sdpa"))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.bad(x) + self.good(x)
            return out

    errors = [ArithmeticError("boom")]

    def broken(*given: Any) -> Any:
        if errors:
            raise errors.pop()
        return logits_of_call(*given)

    monkeypatch.setattr("bnlab_callbacks.recorders.attention.logits_of_call", broken)
    record, recorder = recorded(Two(), (inputs(),))
    (line,) = recorder.unseen.lines().values()
    assert line == "1 layer causes ArithmeticError: boom: not recorded (bad.block.attn)"
    assert {tag.partition("/")[2] for tag in record} == {"00_good.block.attn"}


def test_random_numbers_are_the_run_s_own() -> None:
    net, x = Net(Attention("F.softmax")), inputs(9, 40)  # with dropout
    torch.manual_seed(0)
    recorded(net, (x,))
    with_recorder = [torch.rand(3), *(each.grad for each in net.parameters())]
    net = Net(Attention("F.softmax"))
    torch.manual_seed(0)
    net(x).sum().backward()
    for one, other in zip(with_recorder, [torch.rand(3), *(each.grad for each in net.parameters())], strict=True):
        assert one is other is None or torch.equal(one, other)  # type: ignore[arg-type]


def test_tensors_that_are_no_dense_floats_are_none() -> None:
    nested = torch.nested.nested_tensor([torch.randn(3, 2, 4), torch.randn(5, 2, 4)], layout=torch.jagged)
    assert logits_of_call(F.scaled_dot_product_attention, [nested.transpose(1, 2)] * 3, {}) is None
    empty = torch.randn(0, 4, 5, 8)
    assert logits_of_call(F.scaled_dot_product_attention, [empty] * 3, {}) is None
    seen = []

    def under_vmap(x: Tensor) -> Tensor:
        seen.append(logits_of_call(F.scaled_dot_product_attention, [x] * 3, {}))
        return x

    torch.func.vmap(under_vmap)(torch.randn(3, 4, 5, 8))
    assert seen == [None]
