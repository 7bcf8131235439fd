"""Calls of activations joined over ranks, from the messages that they send."""

import pytest
import torch
from torch import nn

from bnlab_callbacks.recorders.activation_calls import Call, merge, pack_calls, split_ranks
from bnlab_callbacks.statistics.activations import activation_sums, saturation
from bnlab_callbacks.statistics.chunks import Scratch
from bnlab_callbacks.statistics.effective_rank import effective_rank


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Sigmoid()], ids=lambda module: type(module).__name__)
def test_ranks_are_joined_to_what_one_call_of_the_whole_leaves(module: nn.Module) -> None:
    whole = module(torch.randn(12, 7, generator=torch.Generator().manual_seed(0)))
    messages, calls = [], []
    for part in whole.split(6):
        sums = activation_sums(part, saturation(module), 1, Scratch())
        calls = [("act", Call("act", 6, part.numel(), sums, sums.unit_max, rank=effective_rank(part, 1)))]
        vector, where = pack_calls(calls, torch.device("cpu"))
        messages.append(vector)
    merged = merge(calls, where, split_ranks(torch.stack(messages)))["act"]
    a = whole.double()
    assert merged.samples == 12
    assert merged.moments.mean == pytest.approx(float(a.mean()), rel=1e-6)
    assert merged.moments.std == pytest.approx(float(a.std(correction=0)), rel=1e-6)
    assert merged.moments.kurtosis == pytest.approx(float(((a - a.mean()) ** 4).mean() / a.var(correction=0) ** 2))
    assert merged.absmax == float(a.abs().max())
    assert merged.magnitudes is not None
    torch.testing.assert_close(merged.magnitudes.double(), a.abs().sum(0), rtol=1e-6, atol=0)
    assert (merged.active is not None) == isinstance(module, nn.ReLU)
    assert merged.ranks == pytest.approx([float(effective_rank(part, 1)) for part in whole.split(6)])
