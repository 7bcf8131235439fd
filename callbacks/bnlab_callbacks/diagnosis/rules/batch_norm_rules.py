"""Rules about batch-norm layers."""

import math

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import History
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.rule import Rule
from bnlab_callbacks.diagnosis.rules.thresholds import FEW_SAMPLES, FEW_VALUES
from bnlab_callbacks.statistics.losses import not_finite

_MOMENTUM = 0.9
_DRIFT, _DRIFT_FROM = 3.0, 200
_GAMMA, _GAMMA_FROM = 0.5, 100


def eval_mode(history: History) -> Verdict | None:
    """Batch-norm layers with trainable scales that are in evaluation mode while the module trains."""
    layers = history.facts.norm_eval
    if not layers:
        return None
    return Verdict(
        f"{len(layers)} batch-norm layers are in evaluation mode, with the statistics of the start", layers[0]
    )


def small_batch(history: History) -> Verdict | None:
    """Fewer than 8 values a channel, or fewer than 4 samples: the batch's statistics are mostly noise.

    The error of a mean over n values is 1/√n of their deviation, and the places of one image are no independent values.
    Wu & He 2018 (Group Normalization), ResNet-50 on ImageNet, with 49 places and more: errors of 23.6 % with 32 samples
    a batch, 24.8 % with 8, 27.3 % with 4, 34.7 % with 2. Failing: batches of 2; healthy: 64.
    """
    for layer, (values, samples) in history.facts.norm_values.items():
        if values < FEW_VALUES:
            return Verdict(f"a batch gives a channel {values} values to normalize with (below {FEW_VALUES})", layer)
        if samples < FEW_SAMPLES:
            return Verdict(f"a batch has {samples} samples to normalize with (below {FEW_SAMPLES})", layer)
    return None


def running_statistics(history: History) -> Verdict | None:
    """Running statistics that evaluation mode would get wrong.

    A momentum of 0.9 or more keeps the last batch only; or, from step 200 on, the running mean is more than three
    deviations from the batches'. Healthy MLPs: 0.21 at most from step 200 on.
    """
    for layer, momentum in history.facts.norm_momentum.items():
        if momentum is not None and momentum >= _MOMENTUM:
            return Verdict(f"momentum {momentum:g}: its running statistics are those of the last batch alone", layer)
    far = {layer: value for layer, value in history.now.of("bn_drift").items() if value > _DRIFT}
    if not far or history.now.step < _DRIFT_FROM:
        return None
    layer, value = next(iter(far.items()))
    return Verdict(f"its running mean is {value:.2g} deviations from the batch's (above {_DRIFT:g})", layer)


def statistics_not_finite(history: History) -> Verdict | None:
    """Running statistics that are NaN or infinite, though the batch's are not: evaluation mode gives no numbers.

    One bad batch is enough, also one whose loss is left out: a moving average never gets rid of NaN.
    """
    now, last = history.now, history.losses.last
    if (last is not None and not_finite(last)) or not all(map(math.isfinite, now.of("act_absmax").values())):
        return None
    gaps = (now.of(quantity).items() for quantity in ("bn_drift", "bn_logvar"))
    bad = list(dict.fromkeys(layer for gap in gaps for layer, value in gap if not math.isfinite(value)))
    return (
        Verdict(f"running statistics of {len(bad)} batch norms are not finite, since some batch was not", bad[0])
        if bad
        else None
    )


def gamma_collapsed(history: History) -> Verdict | None:
    """More than half of a layer's scales |γ| below 0.05, from step 100 on, where they were not at the start."""
    if history.now.step < _GAMMA_FROM:
        return None
    first = history.first.of("bn_gamma_small_frac")
    for layer, share in history.now.of("bn_gamma_small_frac").items():
        if share > _GAMMA and first.get(layer, 0.0) <= _GAMMA:
            return Verdict(f"{share:.0%} of its scales are below 0.05: these channels are all but off", layer)
    return None


BATCH_NORM_RULES = (
    Rule("batch_norm_eval_mode", eval_mode, "warning", advice("train_mode"), patience=2),
    Rule("batch_norm_small_batch", small_batch, "warning", advice("larger_batch_or_sync")),
    Rule(
        "batch_norm_running_statistics",
        running_statistics,
        "warning",
        advice("batch_norm_momentum", "lower_learning_rate"),
        patience=2,
    ),
    Rule(
        "batch_norm_running_statistics",
        statistics_not_finite,
        "failing",
        advice("reset_running_stats", "check_for_nan"),
        ("bn_drift",),
        2,
    ),
    Rule(
        "batch_norm_gamma_collapsed",
        gamma_collapsed,
        "warning",
        advice("no_decay_of_scales", "lower_learning_rate"),
        ("bn_gamma_small_frac",),
        3,
    ),
)
