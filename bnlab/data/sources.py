"""The datasets by name: what each looks like, and how it gets into memory."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from bnlab.data.files import check_present
from bnlab.data.image_set import ImageSet
from bnlab.data.npz import describe_npz, read_npz
from bnlab.data.readers import read_cifar, read_digits, read_mnist, read_svhn
from bnlab.errors import InputError

DatasetName = Literal["digits", "mnist", "svhn", "cifar10", "cifar100", "npz"]
DATASETS: tuple[str, ...] = get_args(DatasetName)

_READERS: dict[str, Callable[[Path], ImageSet]] = {
    "digits": lambda _: read_digits(),
    "mnist": read_mnist,
    "svhn": read_svhn,
    "cifar10": partial(read_cifar, "cifar10"),
    "cifar100": partial(read_cifar, "cifar100"),
    "npz": read_npz,
}
_CLASSES_AND_CHANNELS = {"digits": (10, 1), "mnist": (10, 1), "svhn": (10, 3), "cifar10": (10, 3), "cifar100": (100, 3)}


def check_dataset_name(dataset: str) -> None:
    """Raise InputError, listing the known names, unless `dataset` is one of DATASETS."""
    if dataset not in DATASETS:
        raise InputError(f"unknown dataset {dataset!r}: choose --data.dataset from {', '.join(DATASETS)}.")


def describe(dataset: str, root: str | Path) -> tuple[int, int, tuple[int, int]]:
    """Return (num_classes, in_channels, (H, W)), H and W after padding.

    Known without any file for all but `npz`, of which the headers and the training labels are read.

    Raises:
        InputError: unknown dataset, or an npz file that is missing or wrong.
    """
    check_dataset_name(dataset)
    folder = Path(root).expanduser()
    if dataset == "npz":
        check_present(dataset, folder)
        return describe_npz(folder)
    num_classes, channels = _CLASSES_AND_CHANNELS[dataset]
    return num_classes, channels, (32, 32)


def load(dataset: str, root: str | Path) -> ImageSet:
    """Read a whole dataset into memory from the files under `root` (`digits` needs none); never downloads.

    Raises:
        InputError: unknown dataset, or a file that is missing or damaged; the message names it and the way out.
    """
    check_dataset_name(dataset)
    folder = Path(root).expanduser()
    check_present(dataset, folder)
    try:
        return _READERS[dataset](folder)
    except OSError as error:
        raise InputError(
            f"{dataset}: {error.filename or folder} cannot be read ({error.strerror or error}). Mend that, or set "
            "--data.root to another folder; --data.dataset digits needs no files."
        ) from error
