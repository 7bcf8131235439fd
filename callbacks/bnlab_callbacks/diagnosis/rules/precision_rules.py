"""Rules about 16-bit weights: updates that are lost to rounding, and an ε that is 0.

Ranges in the docstrings: MLPs with and without batch norm and a CNN with it on 8 × 8 digits, AdamW (1e-5 to 1e-3) and
SGD (0.001 to 0.05, with and without momentum), bf16-true beside 32-true.
"""

import math
from statistics import fmean

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.rule import Rule
from bnlab_callbacks.statistics.losses import not_finite

_STUCK, _STUCK_LOOKS = 0.1, 15
_SLOWED, _SLOWED_FROM = 0.4, 75
_EQUAL_STEPS = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Rprop")


def updates_lost(history: History) -> Verdict | None:
    """Steps change few of the 16-bit weights that have a gradient: what they would add is rounded away.

    Of the median layer, in the looks of the first hundred steps. Stuck: below 10 % in all of 15 looks and more (4 % at
    most; the loss need not be high; in float32 99 % change). Slowed, with Adam and its like alone: below 40 % in all,
    and no more at the end than at the beginning (AdamW at 1e-4: 32 to 38 %, 1.2 to 4 times float32's loss; at 1e-3:
    100 %). The large steps of SGD, which do most, are not lost: 26 to 41 % is as good as float32 there. Later the share
    falls in healthy runs, too. Not while a warm-up is on, and only with optimizers of torch.optim: others may keep the
    weights a second time, or round at random.
    """
    shares, optimizers = history.early_changes.at, history.facts.optimizers
    known = optimizers and all(state.own and state.settled for state in optimizers)
    if not known or len(shares) < _STUCK_LOOKS:
        return None
    values, largest = list(shares.values()), max(shares.values())
    third = len(values) // 3
    alike = all(state.name in _EQUAL_STEPS for state in optimizers)
    falls = max(shares) >= _SLOWED_FROM and fmean(values[-third:]) <= fmean(values[:third])
    slowed = alike and falls and largest < _SLOWED
    if not (largest < _STUCK or slowed):
        return None
    return Verdict(
        f"a step changes {largest:.1%} of the median layer's weights with a gradient at most: rounded to 16 bits, the "
        "others stay as they are"
    )


def epsilon_lost(history: History) -> Verdict | None:
    """An Adam (or RMSprop, …) whose ε is 0 in the float16 of its parameters: failing once something is not finite.

    It divides by √v + ε, and where the squared gradient is 0 in float16, too (a gradient below 2e-4), that is 0: NaN
    after one step.
    """
    lost = next((state for state in history.facts.optimizers if state.lost_epsilon is not None), None)
    if lost is None:
        return None
    now = history.now
    loss = history.losses.last
    values = [*now.of("update_ratio").values(), *now.of("weight_rms").values(), *now.of("act_absmax").values()]
    gone = (loss is not None and not_finite(loss)) or any(math.isnan(v) or v == math.inf for v in values)
    return Verdict(
        f"the ε of {lost.name}, {lost.lost_epsilon:g}, is 0 in float16: where a squared gradient is 0 there as well, a "
        "step divides by 0",
        severity="failing" if gone else "warning",
    )


PRECISION_RULES = (
    Rule("updates_lost_to_rounding", updates_lost, "warning", advice("mixed_precision"), ("changed_frac",)),
    Rule("epsilon_underflow", epsilon_lost, "warning", advice("mixed_precision_or_epsilon", "bf16_true")),
)
