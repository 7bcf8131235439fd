"""Calls of torch functions that are attention, and the logits that they give to softmax."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab_callbacks.statistics.attention import DotProducts, GivenLogits, Logits, is_allowed

_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)
_SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}
_ATTENTION = {F.scaled_dot_product_attention, F.multi_head_attention_forward, *_SOFTMAXES}


def is_attention(function: Callable[..., Any]) -> bool:
    """Whether calls of a function can be attention."""
    return function in _ATTENTION


def is_softmax(function: Callable[..., Any]) -> bool:
    """Whether a function is softmax, which is attention where a module for attention calls it."""
    return function in _SOFTMAXES


def logits_of_call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Logits | None:
    """The logits of a call of `scaled_dot_product_attention`, of `multi_head_attention_forward`, or of softmax.

    None for other functions, for softmax over another dimension than the last or of fewer than three, and for tensors
    that are not dense floats or have no elements. The call's tensors are not changed.
    """
    if function is F.scaled_dot_product_attention:
        logits: Logits | None = _of_products(*args, **kwargs)
    elif function is F.multi_head_attention_forward:
        logits = _of_multi_head(_MULTI_HEAD.bind(*args, **kwargs))
    elif function in _SOFTMAXES:
        logits = _of_softmax(*args, **kwargs)
    else:
        return None
    return logits if logits is not None and 0 not in logits.shape else None


def _is_dense(*tensors: Tensor) -> bool:
    return all(
        tensor.is_floating_point()
        and tensor.layout == torch.strided
        and not tensor.is_nested
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )


def _of_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> DotProducts | None:
    """`scaled_dot_product_attention`: (…, H, L, E) and (…, H or fewer, S, E), mask (…, L, S)."""
    if not _is_dense(query, key):
        return None
    single = query.ndim == 3  # one head
    query, key = _four_dimensional(query.detach(), single), _four_dimensional(key.detach(), single)
    mask = None if attn_mask is None else _four_dimensional(attn_mask.detach(), single)
    # batches may be broadcast, and heads where they are not grouped
    lead = list(
        torch.broadcast_shapes(*(one.shape[:-3] for one in (query, key, mask) if one is not None))  # type: ignore[no-untyped-call]
    )
    heads = max(query.shape[-3], key.shape[-3], 1 if mask is None else mask.shape[-3])
    query = query.expand(*lead, heads, -1, -1).flatten(0, -4)
    key = key.expand(*lead, -1, -1, -1).flatten(0, -4)
    if mask is not None:
        mask = mask.expand(*mask.shape[:-1], key.shape[-2])
        if any(size > 1 for size in mask.shape[:-3]):
            mask = mask.expand(*lead, -1, -1, -1)
        mask = mask.flatten(0, -4)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return DotProducts(query, key, mask, is_causal, factor)


def _four_dimensional(tensor: Tensor, single: bool) -> Tensor:
    """With dimensions of 1 put before (L, E); or put between (N, L, E), where there is a single head."""
    if single and tensor.ndim == 3:
        return tensor.unsqueeze(1)
    return tensor.reshape((1,) * (4 - tensor.ndim) + tensor.shape) if tensor.ndim < 4 else tensor


def _of_softmax(input: Tensor, dim: int | None = None, *more: Any, **options: Any) -> GivenLogits | None:
    """Softmax of logits (…, H, L, S), or of (N, L, S): of one head."""
    if not isinstance(dim, int) or input.ndim < 3 or dim not in (-1, input.ndim - 1) or not _is_dense(input):
        return None
    return GivenLogits(_four_dimensional(input.detach(), single=True).flatten(0, -4))


def _of_multi_head(call: inspect.BoundArguments) -> DotProducts | None:
    """What `nn.MultiheadAttention` calls: queries and keys are projected once more, as they are in the call.

    Its masks are True, or −∞, where a key is not allowed.
    """
    call.apply_defaults()
    given: dict[str, Any] = call.arguments
    query, key = given["query"].detach(), given["key"].detach()
    if not _is_dense(query, key):
        return None
    if query.ndim == 2:  # (L, E): one sequence
        query, key = query.unsqueeze(1), key.unsqueeze(1)
    heads = given["num_heads"]
    with torch.no_grad():
        query, key = _projected(query, key, given)
        if given["bias_k"] is not None:
            key = torch.cat([key, given["bias_k"].to(key.dtype).expand(1, key.shape[1], -1)])
        query, key = (one.view(*one.shape[:2], heads, -1).permute(1, 2, 0, 3) for one in (query, key))  # (N, H, L, E)
        if (static := given["static_k"]) is not None:
            key = static.detach().view(-1, heads, *static.shape[1:])
        if given["add_zero_attn"]:
            key = F.pad(key, (0, 0, 0, 1))
        mask = _multi_head_mask(given, query, key)
    return DotProducts(query, key, mask, False, 1 / math.sqrt(query.shape[-1]))


def _projected(query: Tensor, key: Tensor, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(L, N, E) and (S, N, E) as the call projects them."""
    size = query.shape[-1]
    bias = given["in_proj_bias"]
    biases = (None, None) if bias is None else (bias[:size], bias[size : 2 * size])
    if given["use_separate_proj_weight"]:
        weights = given["q_proj_weight"], given["k_proj_weight"]
    else:
        weights = given["in_proj_weight"][:size], given["in_proj_weight"][size : 2 * size]
    return F.linear(query, weights[0], biases[0]), F.linear(key, weights[1], biases[1])


def _multi_head_mask(given: Mapping[str, Any], query: Tensor, key: Tensor) -> Tensor | None:
    """Both masks together, (N or 1, H or 1, L or 1, S), added to logits; keys that the call appends are allowed."""
    sequences, heads = query.shape[:2]
    found: Tensor | None = None
    padding, mask = given["key_padding_mask"], given["attn_mask"]
    if padding is not None:
        found = _added(padding.detach().reshape(-1, 1, 1, padding.shape[-1]))
    if mask is not None:
        mask = mask.detach()
        mask = _added(mask.reshape(sequences, heads, *mask.shape[1:]) if mask.ndim == 3 else mask[None, None])
        found = mask if found is None else found + mask
    return None if found is None else F.pad(found, (0, key.shape[2] - found.shape[-1]))


def _added(mask: Tensor) -> Tensor:
    """A mask as it is added: −∞ where it is True."""
    if mask.is_floating_point():
        return mask.float().masked_fill(~is_allowed(mask), -math.inf)
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(mask.bool(), -math.inf)
