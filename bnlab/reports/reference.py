"""The thesis's own numbers, tables B.1 to B.4, which ship with the package (`thesis/`, with their source)."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

SOURCE = (
    "F. Schilling, The Effect of Batch Normalization on Deep Convolutional Neural Networks, master's thesis, KTH Royal "
    "Institute of Technology, Stockholm, 2016"
)
SETUP = "Intel Core i7-2600K, NVIDIA Tesla K40c, Torch 7, cuDNN v4 (thesis, appendix A)"


def accuracy(architecture: str, experiment: str, dataset: str | None, batch_norm: bool) -> float | None:
    """Test accuracy in percent after tables B.1 and B.2; None where they have no such cell.

    >>> accuracy("mlp", "lr_high", "mnist", True)
    98.6
    """
    return _accuracies().get((architecture, experiment, dataset, batch_norm))


def epoch_seconds(architecture: str, batch_size: int, dataset: str | None, batch_norm: bool) -> float | None:
    """Seconds per epoch after tables B.3 and B.4; None where they have no such cell."""
    return _seconds().get((architecture, batch_size, dataset, batch_norm))


def mean_overhead(architecture: str, batch_size: int) -> float | None:
    """Mean overhead of batch norm per epoch in percent after tables B.3 and B.4; None where they have no such row."""
    return _overheads().get((architecture, batch_size))


@cache
def _accuracies() -> dict[tuple[str, str, str | None, bool], float]:
    return {
        (row["architecture"], row["experiment"], row["dataset"], row["batch_norm"] == "true"): float(
            row["test_accuracy_percent"]
        )
        for row in _rows("test_accuracy.csv")
    }


@cache
def _seconds() -> dict[tuple[str, int, str | None, bool], float]:
    return {
        (row["architecture"], int(row["batch_size"]), row["dataset"], row["batch_norm"] == "true"): float(
            row["seconds_per_epoch"]
        )
        for row in _rows("epoch_seconds.csv")
    }


@cache
def _overheads() -> dict[tuple[str, int], float]:
    return {
        (row["architecture"], int(row["batch_size"])): float(row["mean_overhead_percent"])
        for row in _rows("mean_overhead.csv")
    }


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files("bnlab.reports").joinpath(f"thesis/{name}").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
