"""The texts that name a grid's configs and datasets, and what each of them stands for."""

import re
from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path
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


def shipped_folder() -> Path | None:
    """The folder of the thesis's configs: the checkout's, or the one within an installed bnlab."""
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "mlp_relu.yaml").is_file():
            return folder
    return None


def find_configs(given: Iterable[str]) -> tuple[Path, ...]:
    """The files that paths, globs and names such as `mlp_relu` stand for; what is in the current folder goes first.

    Raises:
        InputError: one of them stands for no file; the message says where it was looked for.
    """
    return tuple(path for text in given for path in _find(text))


def _find(text: str) -> list[Path]:
    """The files of one text; a glob's are sorted."""
    patterns = _patterns(text)
    for pattern in patterns:
        found = [Path(path) for path in sorted(glob(str(pattern)))] if has_magic(text) else [pattern]
        found = [path for path in found if path.is_file()]
        if found:
            return found
    looked = ", ".join(str(pattern) for pattern in patterns)
    raise InputError(
        f"--configs {text}: no such config; looked for {looked}. Give a file, a glob in quotation marks, or the name "
        "of an experiment, such as mlp_relu."
    )


def _patterns(text: str) -> list[Path]:
    """Where a text may lie, the first place first. Only bare names and those in `configs/` are looked for further."""
    given = Path(text)
    patterns = [given]
    if given.parent in (Path(), Path("configs")):
        name = given.name if given.suffix == ".yaml" else f"{given.name}.yaml"
        patterns.append(Path("configs") / name)
        shipped = shipped_folder()
        if shipped is not None:
            patterns.append(shipped / name)
    return list(dict.fromkeys(patterns))
