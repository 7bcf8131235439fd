"""The figures of the thesis's chapter 7 that ours stand beside."""

from typing import NamedTuple

from bnlab.reports.thesis.experiments import PROTOCOL
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


COMPARISONS = [
    Comparison(net, name, given["words"], tuple(given["experiments"]), net in given.get("with_vanilla", ()), figure)
    for name, given in PROTOCOL["comparisons"].items()
    for net, figure in given["figures"].items()
]


def beside(figure: str | None) -> str:
    """The end of a title: the thesis's figure, where there is one."""
    return f" (thesis: figure {figure})" if figure else ""
