"""`AttentionMonitor`: largest logits, entropy and attention sinks of a net's attention in training steps."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from bnlab_callbacks.core.lightning.forward_monitor import ForwardMonitor
from bnlab_callbacks.core.lightning.names import Trainer, rank_zero_info, rank_zero_warn
from bnlab_callbacks.core.records import Moment, Table
from bnlab_callbacks.recorders.attention import AttentionRecorder, AttentionStep
from bnlab_callbacks.recorders.attention_tables import AttentionTables
from bnlab_callbacks.recorders.tables import ELSEWHERE
from bnlab_callbacks.recorders.unseen import MEANT


class AttentionMonitor(ForwardMonitor):
    """Records, attention by attention, the largest logit, the entropy and the share of the first key in training.

    Attention is each call of `scaled_dot_product_attention`, of `nn.MultiheadAttention`, and of softmax over the last
    dimension (logits (N, H, L, S), or (N, L, S) of one head) in a module that is called attention: whose class or own
    name has `atten`, `attn` or `multihead` in it. Its layer is the module in whose forward pass it runs. Only forward
    passes of training steps count, in modules in training mode, with gradients: neither sanity checks nor validation,
    nor what activation checkpointing repeats. An optimizer step's values cover all its accumulated batches and all
    ranks. All is computed in float32 or wider from what softmax is given, masks and position biases added, before
    dropout.

    A key is masked for a query where the mask is False (in `nn.MultiheadAttention`, True), or a float at or below half
    of its dtype's lowest. n is the number of keys that are allowed to a query.

    Logs, for each call, `NN` being its place in the order of execution (the second call in a module is `<layer>.2`):

    - `attn_logit_max/<NN>_<layer>`: the largest logit of all queries and their allowed keys, exactly
    - `attn_entropy/…`: mean over queries and heads of −Σ p ln p / ln n: 1 for even attention, 0 for one key
    - `attn_first/…`, `attn_first_even/…`: mean weight of the first key, and the mean of 1/n, which it would have if
      attention were even; over queries that may see it
    - `attn_one_key_frac/…`, `attn_no_key_frac/…`: shares of queries with one allowed key, which have no entropy, and
      with none, which count nowhere else; exactly

    and, with `heads=True`, the first four of each head as `…/<NN>_<layer>.head<h>`. NaN where no query counts. At the
    end of each epoch `<quantity>_epoch/…`: the means over its records, of `attn_logit_max` the maximum. The epoch
    values are in `trainer.callback_metrics` too, the last record in the attribute `latest`.

    Entropy and the first key's share are means over 4 sequences of a batch and 16 queries of each: one sequence of each
    quarter of the batch and, drawn anew for each sequence, one query of each sixteenth of it; this is 1 to 10 % off the
    mean over all, by how unlike the sequences are. Fewer are taken as they are, so small batches are exact. The run's
    random numbers are not touched.

    Not seen: attention in compiled modules, in fused kernels of other packages (FlashAttention, xFormers), in
    `flex_attention`, and with nested tensors. What ran and was not recorded is named once, at the end of the first
    epoch.

    Sources: Zhai et al. 2023 (entropy), arXiv 2303.06296; Dehghani et al. 2023 (logits), arXiv 2302.05442; Xiao et al.
    2024 (the first key), arXiv 2309.17453.

    Args:
        every_n_steps: optimizer steps between two records; None for the Trainer's `log_every_n_steps`. The first
            step of the run and of every epoch is always recorded.
        layers: regular expression searched in layer names, for example `blocks.0|decoder`; None for all layers.
        heads: whether to log each head's values, too.
        enabled: False switches the callback off.
        budget: largest share of the training time that this callback may take (0.01 for 1 %): it then records
            less often than `every_n_steps` says; None for no limit.

    Raises:
        ValueError: `every_n_steps` below 1, `budget` not above 0, or `layers` no regular expression.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        layers: str | None = None,
        heads: bool = False,
        enabled: bool = True,
        budget: float | None = None,
    ) -> None:
        super().__init__(every_n_steps, layers, enabled, budget)
        self.heads = heads
        self._said = False  # what was not seen
        self._tables = AttentionTables(self.wants, heads)

    def watch(self, trainer: Trainer, model: nn.Module) -> None:
        """Join the recorder of attention."""
        self._said = False
        self._tables.load_state_dict(self._loaded)
        self.join(AttentionRecorder, model)

    def close(self) -> None:
        """Take the hooks off."""
        super().close()
        self._tables = AttentionTables(self.wants, self.heads)

    def take(self, moment: Moment, left: AttentionStep, seconds: float) -> None:
        """Keep what a step left."""
        self.keep(left, self._read, seconds)

    def _read(self, steps: Sequence[AttentionStep]) -> list[Table]:
        tables = self._tables.read(steps)
        if self._tables.different:
            self._tables.different = False
            rank_zero_warn("AttentionMonitor: ranks ran different layers in a recorded step; such steps are left out.")
        return tables

    def heed_failures(self) -> None:
        """Stop if recording failed on some rank: on all of them at once, or those that go on would wait for others."""
        if self._tables.failed:
            self.give_up(self._recorder.failure or ELSEWHERE)

    def epoch_values(self) -> dict[str, float]:
        """Maxima over the epoch's records."""
        self._say_what_is_not_seen()
        return self._tables.pop_epoch()

    def _say_what_is_not_seen(self) -> None:
        if self._said or self._recorder is None or not self._recorder.steps:
            return
        self._said = True
        recorder: AttentionRecorder = self._recorder
        lines = recorder.unseen.lines(self.wants)
        if not any(map(self.wants, recorder.unseen.seen)):
            reasons = "; ".join(lines.values()) or _nothing_seen(self.layers, recorder.unseen.seen)
            rank_zero_warn(f"AttentionMonitor has recorded nothing: {reasons}.")
            return
        for reason, line in lines.items():
            (rank_zero_info if reason in MEANT else rank_zero_warn)(f"AttentionMonitor: {line}.")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return super().state_dict() | self._tables.state_dict()


def _nothing_seen(pattern: str | None, layers: list[str]) -> str:
    if layers:
        return f"no attention's layer matches layers={pattern!r}; there are: {', '.join(layers)}"
    return (
        "no attention ran that can be seen: scaled_dot_product_attention, nn.MultiheadAttention, softmax in modules "
        "that are called attention; outside of compiled modules"
    )
