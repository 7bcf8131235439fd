"""The thesis's own numbers, tables B.1 to B.4, from the CSV files in this folder."""

import csv
from functools import cache
from importlib import resources

SOURCE = (
    "F. Schilling, The Effect of Batch Normalization on Deep Convolutional Neural Networks, master's thesis, KTH Royal "
    "Institute of Technology, Stockholm, 2016"
)
SETUP = "Intel Core i7-2600K, NVIDIA Tesla K40c, Torch 7, cuDNN v4 (thesis, appendix A)"


def accuracy(architecture: str, experiment: str, dataset: str | None, batch_norm: bool) -> float | None:
    """Test accuracy in percent, from table B.1 or B.2; None for a cell that they do not have.

    >>> accuracy("mlp", "lr_high", "mnist", True)
    98.6
    """
    return _number("test_accuracy.csv", architecture, experiment, dataset, batch_norm)


def epoch_seconds(architecture: str, batch_size: int, dataset: str | None, batch_norm: bool) -> float | None:
    """Seconds per epoch, from table B.3 or B.4; None for a cell that they do not have."""
    return _number("epoch_seconds.csv", architecture, batch_size, dataset, batch_norm)


def mean_overhead(architecture: str, batch_size: int) -> float | None:
    """Mean overhead of batch norm per epoch in percent, from table B.3 or B.4; None for a row that they do not have."""
    return _number("mean_overhead.csv", architecture, batch_size)


def _number(file: str, *keys: object) -> float | None:
    """The last column of the row with these keys in the columns between the table's name and it."""
    wanted = [str(key).lower() for key in keys]
    return next((float(number) for _, *found, number in csv_rows(file) if found == wanted), None)


@cache
def csv_rows(file: str) -> list[list[str]]:
    """The rows of a CSV file in this folder, without its header."""
    text = resources.files("bnlab.reports.thesis").joinpath(file).read_text(encoding="utf-8")
    return list(csv.reader(text.splitlines()))[1:]
