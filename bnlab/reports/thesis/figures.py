"""The figures of the thesis's chapter 7 that ours stand beside."""

from typing import NamedTuple

from bnlab.reports.thesis.numbers import csv_rows

LARGE_BATCH = 1024  # the one batch size beside 64 that chapter 7 draws curves for

Figures = dict[tuple[str, str | None, int], str]  # by architecture, experiment and batch size


def _figures(wanted: str) -> Figures:
    """Those that show the curves or the gradients of one experiment."""
    rows = csv_rows("figures.csv")
    return {(net, name, int(size)): figure for figure, shows, net, name, size in rows if shows == wanted}


CURVES, GRADIENTS = _figures("curves"), _figures("gradients")
BATCH_SIZE_FIGURES = {"mlp": "7.15", "cnn": "7.38"}


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
    """The end of a title: the thesis's figure, where there is one."""
    return f" (thesis: figure {figure})" if figure else ""
