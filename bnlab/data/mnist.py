"""MNIST's four IDX files: checked byte by byte, because torchvision checks only that they exist, then read."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file

from bnlab.data.files import needed_files
from bnlab.data.image_set import ImageSet, check_labels
from bnlab.errors import InputError

IMAGES_MAGIC = 0x00000803  # unsigned bytes, 3 dimensions
LABELS_MAGIC = 0x00000801  # unsigned bytes, 1 dimension
IMAGE_SIZE = (28, 28)
PADDING = 2  # on each side, to 32×32


def read_mnist(root: Path) -> ImageSet:
    """Read images (N, 1, 28, 28) and labels (N,) from `root`/MNIST/raw; raise InputError for a damaged file."""
    train_images, train_labels, test_images, test_labels = needed_files("mnist", root)
    return ImageSet(
        *_read_pair(train_images, train_labels), *_read_pair(test_images, test_labels), num_classes=10, padding=PADDING
    )


def _read_pair(image_path: Path, label_path: Path) -> tuple[Tensor, Tensor]:
    # not the class torchvision.datasets.MNIST: it prefers an old processed/*.pt, unchecked, to the raw files
    num_images = check_idx_file(image_path, IMAGES_MAGIC, IMAGE_SIZE)
    num_labels = check_idx_file(label_path, LABELS_MAGIC, ())
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
