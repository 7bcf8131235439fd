"""The datasets of a study: bnlab's by their names, and folders of one's own images under labels."""

from __future__ import annotations

import re
from typing import NamedTuple

from bnlab.errors import InputError

NAMED_DATASETS = ("digits", "mnist", "svhn", "cifar10", "cifar100")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")


class Dataset(NamedTuple):
    """A dataset of bnlab by its name, or a folder of the user's own images under a label."""

    label: str
    name: str  # what `--data.dataset` is given
    folder: str | None  # of `npz`; None for the others, which lie under the grid's root


def dataset(text: str) -> Dataset:
    """A dataset from its text: `mnist`, or `label=npz:FOLDER`.

    Raises:
        InputError: neither of these.
    """
    label, equals, source = text.partition("=")
    known = f"{', '.join(NAMED_DATASETS)}, or label=npz:FOLDER for your own images"
    if not equals:
        if label not in NAMED_DATASETS:
            raise InputError(f"unknown dataset {text!r} in --datasets: choose from {known}.")
        return Dataset(label, label, None)
    kind, colon, folder = source.partition(":")
    if kind != "npz" or not colon or not folder:
        raise InputError(
            f"--datasets {text}: after the label comes npz:FOLDER, for example cifar10_jpeg=npz:data/jpeg."
        )
    if not _LABEL.fullmatch(label):
        raise InputError(
            f"--datasets {text}: a label has letters, digits, _ and . only, and begins with one of the first."
        )
    if label in NAMED_DATASETS:
        raise InputError(
            f"--datasets {text}: {label} is a dataset of bnlab; choose another label, such as {label}_own."
        )
    return Dataset(label, "npz", folder)


def dataset_text(dataset: Dataset) -> str:
    """The text that `dataset` reads."""
    return dataset.label if dataset.folder is None else f"{dataset.label}=npz:{dataset.folder}"
