"""Which figures of the thesis's chapter 7 ours stand beside."""

from __future__ import annotations

from typing import NamedTuple

CURVES = {
    **{("mlp", "relu"): "7.1", ("mlp", "sigmoid"): "7.2", ("mlp", "elu"): "7.3", ("mlp", "lr_high"): "7.5"},
    **{("mlp", "lr_low"): "7.7", ("mlp", "init_high"): "7.9", ("mlp", "init_low"): "7.10"},
    **{("mlp", "dropout"): "7.12", ("mlp", "weight_decay"): "7.13"},
    **{("cnn", "relu"): "7.16", ("cnn", "sigmoid"): "7.18", ("cnn", "elu"): "7.20", ("cnn", "lr_high"): "7.23"},
    **{("cnn", "lr_low"): "7.25", ("cnn", "init_high"): "7.28", ("cnn", "init_low"): "7.30"},
    **{("cnn", "dropout"): "7.33", ("cnn", "weight_decay"): "7.35"},
}
GRADIENTS = {
    ("mlp", "lr_high"): "7.6",
    **{("cnn", "relu"): "7.17", ("cnn", "sigmoid"): "7.19", ("cnn", "elu"): "7.21", ("cnn", "lr_high"): "7.24"},
    **{("cnn", "lr_low"): "7.26", ("cnn", "init_high"): "7.29", ("cnn", "init_low"): "7.31"},
    **{("cnn", "dropout"): "7.34", ("cnn", "weight_decay"): "7.36"},
}
LARGE_BATCH = 1024  # the one batch size beside 64 that chapter 7 draws curves for
LARGE_BATCH_CURVES, LARGE_BATCH_GRADIENTS = {"cnn": "7.39"}, {"cnn": "7.40"}
BATCH_SIZES = {"mlp": "7.15", "cnn": "7.38"}


class Comparison(NamedTuple):
    """Experiments whose validation accuracies the thesis draws in one figure."""

    architecture: str
    name: str
    words: str
    experiments: tuple[str, ...]  # the baseline first
    with_vanilla: bool  # else batch norm alone
    figure: str


_ACTIVATIONS = ("relu", "elu")
_RATES = ("relu", "lr_high", "lr_low")
_INITS = ("relu", "init_high", "init_low")
_REGULARIZATION = ("relu", "dropout", "weight_decay")

COMPARISONS = (
    Comparison("mlp", "activations", "ReLU and ELU activations", _ACTIVATIONS, True, "7.4"),
    Comparison("mlp", "learning_rates", "different initial learning rates", _RATES, False, "7.8"),
    Comparison("mlp", "initializations", "different weight initializations", _INITS, False, "7.11"),
    Comparison("mlp", "regularization", "different regularization methods", _REGULARIZATION, False, "7.14"),
    Comparison("cnn", "activations", "ReLU and ELU activations", _ACTIVATIONS, False, "7.22"),
    Comparison("cnn", "learning_rates", "different initial learning rates", _RATES, False, "7.27"),
    Comparison("cnn", "initializations", "different weight initializations", _INITS, False, "7.32"),
    Comparison("cnn", "regularization", "different regularization methods", _REGULARIZATION, False, "7.37"),
)


def beside(figure: str | None) -> str:
    """The end of a figure's title."""
    return f" (thesis: figure {figure})" if figure else ""
