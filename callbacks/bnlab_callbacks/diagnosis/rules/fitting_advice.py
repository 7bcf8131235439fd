"""Advice that fits a net: nothing that it has already is proposed."""

import math
from collections.abc import Collection, Iterable, Mapping
from statistics import median

from bnlab_callbacks.diagnosis.findings import Advice
from bnlab_callbacks.diagnosis.rules.advice import ADVICE

_ALIKE = 0.1  # relative: how near to √2 the gain of He's initialization is

# what a run has → key of an advice → that of what is left of it; None where nothing is
_LEFT: Mapping[str, Mapping[str, str | None]] = {
    "norm": {
        "batch_norm": None,
        "better_init": "own_init",
        "check_inputs_or_better_init": "check_inputs_or_own_init",
        "lower_learning_rate_or_batch_norm": "lower_learning_rate",
        "smaller_last_layer_or_better_init": "smaller_last_layer_or_own_init",
        "warm_up_or_batch_norm": "warm_up",
    },
    "own_init": {
        "a_tenth_of_the_learning_rate_or_better_init": "a_tenth_of_the_learning_rate",
        "better_init": "batch_norm",
        "check_inputs_or_better_init": "check_inputs",
        "check_inputs_or_own_init": "check_inputs",
        "own_init": None,
        "smaller_last_layer_or_better_init": "smaller_last_layer",
        "smaller_last_layer_or_own_init": "smaller_last_layer",
    },
    "unsaturated": {"unsaturated_activation_or_skips": "skips"},
    "leaky": {"leaky_activation": None, "zero_biases_or_leaky_activation": "zero_biases"},
    "clip": {"lower_learning_rate_or_clip": "lower_learning_rate"},
}


def fitting(advice: Iterable[Advice], has: Collection[str]) -> tuple[Advice, ...]:
    """The advice without what a run has: `norm`, `own_init`, `unsaturated`, `leaky` (activations) or `clip`.

    Of an advice that offers two ways the other one is left, under a key of its own.
    """
    out: dict[str, Advice] = {}
    for one in advice:
        key: str | None = one.key
        for part, left in _LEFT.items():
            if key is not None and part in has:
                key = left.get(key, key)
        if key is not None:
            out.setdefault(key or one.text, one if key == one.key else Advice(key, ADVICE[key]))
    return tuple(out.values())


def is_kaiming(weight_rms: Mapping[str, float], inputs: Mapping[str, int]) -> bool:
    """Whether a net began with He's initialization: root mean square times √inputs is √2, in the median layer.

    Args:
        weight_rms: layer → ‖w‖₂/√n when training began.
        inputs: layer → inputs of a unit.
    """
    gains = [rms * math.sqrt(inputs[layer]) for layer, rms in weight_rms.items() if layer in inputs]
    return bool(gains) and math.isclose(median(gains), math.sqrt(2), rel_tol=_ALIKE)
