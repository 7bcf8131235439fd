"""The figures of the thesis's chapter 7 that ours stand beside."""

from __future__ import annotations

from typing import NamedTuple

from bnlab.reports.thesis.experiments import BATCH_SIZE

LARGE_BATCH = 1024  # the one batch size beside 64 that chapter 7 draws curves for

Figures = dict[tuple[str, str | None, int], str]  # by architecture, experiment and batch size


def _figures(architecture: str, **figures: str) -> Figures:
    return {(architecture, experiment, BATCH_SIZE): figure for experiment, figure in figures.items()}


CURVES: Figures = {
    **_figures("mlp", relu="7.1", sigmoid="7.2", elu="7.3", lr_high="7.5", lr_low="7.7", init_high="7.9"),
    **_figures("mlp", init_low="7.10", dropout="7.12", weight_decay="7.13"),
    **_figures("cnn", relu="7.16", sigmoid="7.18", elu="7.20", lr_high="7.23", lr_low="7.25", init_high="7.28"),
    **_figures("cnn", init_low="7.30", dropout="7.33", weight_decay="7.35"),
    ("cnn", "relu", LARGE_BATCH): "7.39",
}
GRADIENTS: Figures = {
    **_figures("mlp", lr_high="7.6"),
    **_figures("cnn", relu="7.17", sigmoid="7.19", elu="7.21", lr_high="7.24", lr_low="7.26", init_high="7.29"),
    **_figures("cnn", init_low="7.31", dropout="7.34", weight_decay="7.36"),
    ("cnn", "relu", LARGE_BATCH): "7.40",
}
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
