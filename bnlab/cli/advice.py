"""Advice of the diagnosis in the words of `bnlab`: with its flags, and without what a run already has."""

from collections.abc import Callable, Set
from typing import NamedTuple

from jsonargparse import Namespace

from bnlab.nets import init_family


class _Way(NamedTuple):
    """One of the things that an advice offers to try."""

    text: str
    name: str = ""  # in what `_present` gives; empty for what no configuration has once and for all
    joint: str = ", or "  # before it, where another comes first


_LOWER_LR = _Way("a lower learning rate (--model.lr)")
_TENTH_LR = _Way("a learning rate ten times lower (--model.lr)")
_INIT = _Way("the activation's own initialization (--model.init auto)", "init")
_BATCH_NORM = _Way("batch normalization (--model.batch_norm true)", "batch_norm")
_LEAKY = _Way("leaky_relu or elu (--model.activation)", "leaky")
_BATCH_SIZE = "a larger batch (--data.batch_size)"

# key of an advice → what it says here; an advice that is missing is said as it is
_ADVICE: dict[str, tuple[_Way, ...]] = {
    "a_tenth_of_the_learning_rate": (_TENTH_LR,),
    "a_tenth_of_the_learning_rate_or_better_init": (_TENTH_LR, _INIT._replace(joint=" or ")),
    "a_third_to_a_tenth_of_the_learning_rate": (_Way("a learning rate three to ten times lower (--model.lr)"),),
    "another_learning_rate": (_Way("another learning rate (--model.lr)"),),
    "batch_norm": (_BATCH_NORM,),
    "better_init": (_INIT, _BATCH_NORM),
    "bf16": (_Way("bf16-mixed instead of 16-mixed (--trainer.precision)"),),
    "check_inputs_or_better_init": (_Way("look at the inputs"), _INIT._replace(joint="; "), _BATCH_NORM),
    "higher_learning_rate": (_Way("a learning rate ten to a hundred times higher (--model.lr)"),),
    "larger_batch": (_Way(_BATCH_SIZE),),
    "larger_batch_or_other_norm": (_Way(_BATCH_SIZE), _Way("group or layer norm")),
    "larger_batch_or_sync": (
        _Way(f"{_BATCH_SIZE}, group or layer norm"),
        _Way("--trainer.sync_batchnorm true on several GPUs", "sync_batchnorm"),
    ),
    "leaky_activation": (_LEAKY,),
    "looser_clip": (_Way("a clip near the usual norm of the gradient (--trainer.gradient_clip_val)"),),
    "lower_learning_rate_or_batch_norm": (_LOWER_LR, _BATCH_NORM._replace(joint=" or ")),
    "lower_learning_rate_or_clip": (_LOWER_LR, _Way("gradient clipping (--trainer.gradient_clip_val 1)", "clip")),
    "lower_learning_rate": (_LOWER_LR,),
    "own_init": (_INIT,),
    "mixed_precision": (
        _Way("mixed instead of true precision (--trainer.precision bf16-mixed)"),
        _Way("an optimizer with stochastic rounding"),
    ),
    "mixed_precision_or_epsilon": (_Way("16-mixed or bf16-true instead of 16-true (--trainer.precision)"),),
    "random_weights": (_Way("random weights: --model.init auto", "init"),),
    "smaller_last_layer_or_better_init": (
        _Way("smaller weights in the last layer"),
        _INIT._replace(joint="; "),
        _BATCH_NORM,
    ),
    "standardise": (
        _Way(
            "subtract the training set's mean and divide by its standard deviation (--data.standardize global)",
            "standardize",
        ),
    ),
    "unsaturated_activation_or_skips": (
        _Way("an activation that does not saturate (--model.activation relu)", "unsaturated"),
        _Way("skip connections"),
    ),
    "warm_up_or_batch_norm": (_Way("a warm-up"), _Way("batch normalization", "batch_norm")),
    "zero_biases_or_leaky_activation": (_Way("biases of 0"), _LEAKY._replace(joint="; ")),
}
_NUMBERS = {"stable_learning_rate": " (--model.lr)"}  # advice with a number in it → what comes after it


def advice_for(config: Namespace) -> Callable[[str, str], str | None]:
    """A function of an advice's key and its plain text, which gives the words for a run; None to leave it out."""
    present = _present(config)

    def advise(key: str, text: str) -> str | None:
        if key not in _ADVICE:
            return text + _NUMBERS.get(key, "")
        ways = [way for way in _ADVICE[key] if way.name not in present]
        return "".join(way.text if way is ways[0] else way.joint + way.text for way in ways) or None

    return advise


def _present(config: Namespace) -> Set[str]:
    """What could be advised and is in a configuration already."""
    model, trainer = config["model"], config["trainer"]
    family = init_family(model["activation"])
    present = {
        "init": model["init"] in ("auto", family),
        "batch_norm": model["batch_norm"],
        "unsaturated": family == "kaiming",
        "leaky": model["activation"] in ("leaky_relu", "elu"),
        "standardize": config["data"]["standardize"] != "none",
        "clip": trainer["gradient_clip_val"],
        "sync_batchnorm": trainer["sync_batchnorm"],
    }
    return frozenset(name for name, there in present.items() if there)
