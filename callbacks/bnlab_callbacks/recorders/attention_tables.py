"""Tables of attention's statistics, from what the recorder left of some steps."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bnlab_callbacks.core.ranks import agreement
from bnlab_callbacks.core.records import Table, epoch_tag
from bnlab_callbacks.recorders.activation_calls import larger
from bnlab_callbacks.recorders.attention import AttentionStep
from bnlab_callbacks.recorders.tables import Tables, everything
from bnlab_callbacks.statistics.attention import (
    ENTROPY,
    EVEN,
    FIRST,
    LOGIT_MAX,
    NO_KEY,
    ONE_KEY,
    ROWS,
    WITH_ENTROPY,
    WITH_FIRST,
    join_sums,
)

_SUMS = 9  # a head


class AttentionTables(Tables):
    """Turns what `AttentionRecorder` left into tables.

    Args:
        wants: which layers are to be in the tables.
        heads: whether to have each head's values beside the layer's.
    """

    def __init__(self, wants: Callable[[str], bool] = everything, heads: bool = False) -> None:
        super().__init__(wants)
        self.heads = heads
        self._maxima: dict[str, float] = {}

    def read(self, steps: Sequence[AttentionStep]) -> list[Table]:
        """Tables of recorded steps, whose tensors are on the host."""
        tables = []
        for step in steps:
            self.number(step.names)
            values = dict(self._tags(step))
            for tag, value in values.items():
                if tag.startswith("attn_logit_max/"):
                    self._maxima[tag] = larger(self._maxima.get(tag, -math.inf), value)
            tables.append(Table.of(values))
        return tables

    def _tags(self, step: AttentionStep) -> Iterator[tuple[str, float]]:
        ranks = step.sums.double()
        if ranks.ndim == 2:
            found = agreement(ranks[:, 0].tolist())
            self.note(found)
            if found != "agreed":
                return
            ranks = ranks[:, 1:]
        start = 0
        for name, layer, heads in step.measured:
            end = start + _SUMS * heads
            if self.wants(layer):
                yield from self._statistics(self.numbered[name], _joined(ranks[..., start:end].view(-1, _SUMS, heads)))
            start = end

    def _statistics(self, layer: str, sums: Tensor) -> Iterator[tuple[str, float]]:
        """Tags and values of one call, from its sums (9, H)."""
        whole = torch.cat([sums[:1].amax(1), sums[1:].sum(1)])
        yield from self._of_queries(layer, whole)
        yield f"attn_one_key_frac/{layer}", float(whole[ONE_KEY] / whole[ROWS])
        yield f"attn_no_key_frac/{layer}", float(whole[NO_KEY] / whole[ROWS])
        if self.heads:
            for head, one in enumerate(sums.unbind(1)):
                yield from self._of_queries(f"{layer}.head{head}", one)

    def _of_queries(self, layer: str, sums: Tensor) -> Iterator[tuple[str, float]]:
        yield f"attn_logit_max/{layer}", float(sums[LOGIT_MAX])
        yield f"attn_entropy/{layer}", float(sums[ENTROPY] / sums[WITH_ENTROPY])
        yield f"attn_first/{layer}", float(sums[FIRST] / sums[WITH_FIRST])
        yield f"attn_first_even/{layer}", float(sums[EVEN] / sums[WITH_FIRST])

    def pop_epoch(self) -> dict[str, float]:
        """Maxima over the epoch's records, by tag; start the next epoch."""
        values = {epoch_tag(tag): value for tag, value in self._maxima.items()}
        self._maxima.clear()
        return values

    def state_dict(self) -> dict[str, Any]:
        """Numbers and texts."""
        return {"numbered": dict(self.numbered), "maxima": dict(self._maxima)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self.numbered = dict(state.get("numbered", {}))
        self._maxima = dict(state.get("maxima", {}))


def _joined(ranks: Tensor) -> Tensor:
    """The sums (9, H) of all ranks together."""
    whole, *others = ranks.unbind()
    for one in others:
        whole = join_sums(whole, one)
    return whole
