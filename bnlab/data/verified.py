"""SVHN and CIFAR: read by torchvision, which verifies each file's md5 first.

It imports scipy when it reads SVHN's .mat files, and not before.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, SVHN
from torchvision.datasets.utils import calculate_md5

from bnlab.data.files import checksums
from bnlab.data.image_set import ImageSet, check_labels
from bnlab.errors import InputError


def read_svhn(root: Path) -> ImageSet:
    """Read images (N, 3, 32, 32) from the two .mat files in `root`; the label 10 of the digit zero becomes 0."""
    train = _open("svhn", root, SVHN, split="train")
    test = _open("svhn", root, SVHN, split="test")
    tensors = [_tensors(part.data, part.labels) for part in (train, test)]
    return _checked("svhn", root, tensors, 10)


def read_cifar(dataset: str, root: Path) -> ImageSet:
    """Read images (N, 3, 32, 32) of `cifar10`, or of `cifar100` with its 100 fine labels."""
    reader = CIFAR10 if dataset == "cifar10" else CIFAR100
    with warnings.catch_warnings():
        # the files hold arrays pickled by an old numpy, at which numpy 2.4.0 to 2.4.4 warn (numpy#31177)
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be")
        parts = [_open(dataset, root, reader, train=train) for train in (True, False)]
    tensors = [_tensors(part.data.transpose(0, 3, 1, 2), np.asarray(part.targets)) for part in parts]
    return _checked(dataset, root, tensors, 10 if dataset == "cifar10" else 100)


def _open(dataset: str, root: Path, reader: Any, **part: object) -> Any:
    """Return torchvision's dataset object, or raise InputError that names the file whose md5 is wrong."""
    try:
        return reader(root, download=False, **part)
    except RuntimeError as error:  # torchvision's "not found or corrupted", which names no file
        raise _damage(dataset, root) from error


def _damage(dataset: str, root: Path) -> InputError:
    for path, expected in checksums(dataset, root):
        found = calculate_md5(path)
        if found != expected:
            return InputError(
                f"{dataset}: {path} is damaged: its md5 must be {expected}, found {found}. "
                "Delete the file to download it again; --data.dataset digits needs no files."
            )
    return InputError(f"{dataset}: the files in {root} cannot be read. Delete them to download them again.")


def _tensors(images: npt.NDArray[np.uint8], labels: npt.NDArray[Any]) -> tuple[Tensor, Tensor]:
    targets = labels.reshape(-1).astype(np.int64)  # reshape: torchvision squeezes one label to no dimension
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(targets)


def _checked(dataset: str, root: Path, parts: list[tuple[Tensor, Tensor]], num_classes: int) -> ImageSet:
    folder = checksums(dataset, root)[0][0].parent
    for _, labels in parts:
        check_labels(labels, num_classes, folder)
    (train_images, train_labels), (test_images, test_labels) = parts
    return ImageSet(train_images, train_labels, test_images, test_labels, num_classes)
