"""Readers of the datasets that bnlab knows by name.

The digits come with scikit-learn. MNIST's four IDX files are checked byte by byte, because torchvision checks only that
they exist; of SVHN and CIFAR torchvision verifies each file's md5. It imports scipy when it reads SVHN, and not before.
"""

import math
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.datasets import SVHN
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import calculate_md5

from bnlab.data.files import CIFAR, checksums, needed_files
from bnlab.data.image_set import ImageSet, check_labels
from bnlab.errors import InputError

_DIGITS_TRAIN, _ENLARGEMENT = 646, 4
_IMAGES_MAGIC = 0x00000803  # of MNIST: unsigned bytes, 3 dimensions
_LABELS_MAGIC = 0x00000801  # unsigned bytes, 1 dimension
_MNIST_SIZE = (28, 28)
_MNIST_PADDING = 2  # on each side, to 32×32


def read_digits() -> ImageSet:
    """Return the digits as images (N, 1, 32, 32): the first 646 for training, the other 1,151 for the test.

    Grey values 0 … 16 become 0 … 255, and each of the 8×8 pixels a block of 4×4. The split is fixed and unshuffled.

    Why there: the file names no writers, but its labels repeat the text of one form 14 times (it begins
    0123456789 0123456789 0123456789 9556509898417…, at images 0, 130, 256, …, 646, …), so the images stand form by
    form. The first five forms are for training, few enough for the CNN to train in two minutes on a CPU, and nine for
    the test. Expect a test accuracy below the validation accuracy: the test asks for handwriting that was not seen.
    (13 writers filled in 14 forms; which one did two is not recorded.)
    """
    from sklearn.datasets import load_digits  # slow to import, and of use to this dataset only

    small, labels = load_digits(return_X_y=True)
    grey = np.round(small.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    images = torch.from_numpy(grey.repeat(_ENLARGEMENT, axis=2).repeat(_ENLARGEMENT, axis=3))
    targets = torch.from_numpy(labels.astype(np.int64))
    return ImageSet(
        images[:_DIGITS_TRAIN], targets[:_DIGITS_TRAIN], images[_DIGITS_TRAIN:], targets[_DIGITS_TRAIN:], num_classes=10
    )


def read_mnist(root: Path) -> ImageSet:
    """Read images (N, 1, 28, 28) and labels (N,) from `root`/MNIST/raw; raise InputError for a damaged file."""
    train_images, train_labels, test_images, test_labels = needed_files("mnist", root)
    train, test = _read_pair(train_images, train_labels), _read_pair(test_images, test_labels)
    return ImageSet(*train, *test, num_classes=10, padding=_MNIST_PADDING)


def _read_pair(image_path: Path, label_path: Path) -> tuple[Tensor, Tensor]:
    # not the class torchvision.datasets.MNIST: it prefers an old processed/*.pt, unchecked, to the raw files
    num_images = check_idx_file(image_path, _IMAGES_MAGIC, _MNIST_SIZE)
    num_labels = check_idx_file(label_path, _LABELS_MAGIC, ())
    if num_images != num_labels:
        raise InputError(
            f"{image_path} has {num_images} images but {label_path.name} has {num_labels} labels: they must agree. "
            "Delete both to download them again."
        )
    labels: Tensor = read_label_file(str(label_path))
    check_labels(labels, 10, label_path)
    return read_image_file(str(image_path)).unsqueeze(1), labels


def check_idx_file(path: Path, magic: int, item_shape: tuple[int, ...]) -> int:
    """Return the number of items in an IDX file, whose header and length must be those of such items.

    Raises:
        InputError: wrong magic number, item shape or file length; the message names the file and both values.
    """
    way_out = "Delete the file to download it again."
    header_format = f">{2 + len(item_shape)}I"
    header_bytes = struct.calcsize(header_format)
    with path.open("rb") as file:
        header = file.read(header_bytes)
    found = path.stat().st_size
    if len(header) < header_bytes:
        raise InputError(f"{path} is truncated: its header needs {header_bytes} bytes, found {found}. {way_out}")
    found_magic, items, *found_shape = struct.unpack(header_format, header)
    if found_magic != magic:
        raise InputError(f"{path} is garbled: it must begin with {magic:#010x}, found {found_magic:#010x}. {way_out}")
    if tuple(found_shape) != item_shape:
        wanted = "x".join(map(str, item_shape))
        raise InputError(
            f"{path} is garbled: its images must be {wanted}, found {'x'.join(map(str, found_shape))}. {way_out}"
        )
    expected = header_bytes + items * math.prod(item_shape)
    if found != expected:
        state = "truncated" if found < expected else "garbled"
        raise InputError(
            f"{path} is {state}: its header announces {items} items, so expected {expected} bytes, found {found}. "
            f"{way_out}"
        )
    return int(items)


def read_svhn(root: Path) -> ImageSet:
    """Read images (N, 3, 32, 32) from the two .mat files in `root`; the label 10 of the digit zero becomes 0."""
    train = _open("svhn", root, SVHN, split="train")
    test = _open("svhn", root, SVHN, split="test")
    tensors = [_tensors(part.data, part.labels) for part in (train, test)]
    return _checked("svhn", root, tensors, 10)


def read_cifar(dataset: str, root: Path) -> ImageSet:
    """Read images (N, 3, 32, 32) of `cifar10`, or of `cifar100` with its 100 fine labels."""
    with warnings.catch_warnings():
        # the files hold arrays pickled by an old numpy, at which numpy 2.4.0 to 2.4.4 warn (numpy#31177)
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be")
        parts = [_open(dataset, root, CIFAR[dataset], train=train) for train in (True, False)]
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
