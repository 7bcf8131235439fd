"""The user's own images: `train.npz` and `test.npz` with arrays `images` and `labels`, never unpickled."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from bnlab.data.image_set import ImageSet, check_labels
from bnlab.errors import InputError

WANTED = "arrays `images` (uint8, NxHxW or NxHxWxC) and `labels` (integers, N)"


def read_npz(root: Path) -> ImageSet:
    """Read images (N, C, H, W) and labels (N,); C is 1 for N×H×W. Classes are 0 … the largest training label.

    Raises:
        InputError: a file is damaged, or its arrays are not what they must be; the message names file and array.
    """
    paths = root / "train.npz", root / "test.npz"
    _check_same_size(*paths)
    (train_images, train_labels), (test_images, test_labels) = (_read_part(path) for path in paths)
    num_classes = _count_classes(train_labels, paths[0])
    check_labels(test_labels, num_classes, paths[1])
    return ImageSet(train_images, train_labels, test_images, test_labels, num_classes)


def describe_npz(root: Path) -> tuple[int, int, tuple[int, int]]:
    """Return (num_classes, in_channels, (H, W)) from the headers and the training labels; no image is read."""
    path = root / "train.npz"
    channels, height, width = _check_same_size(path, root / "test.npz")
    return _count_classes(_read_labels(path), path), channels, (height, width)


def _count_classes(labels: Tensor, path: Path) -> int:
    num_classes = int(labels.max()) + 1
    check_labels(labels, num_classes, path)
    return num_classes


def _check_same_size(train: Path, test: Path) -> tuple[int, int, int]:
    """Return (C, H, W), which both files must share."""
    sizes = _check_headers(train), _check_headers(test)
    if sizes[0] != sizes[1]:
        train_size, test_size = ("C={} H={} W={}".format(*size) for size in sizes)
        raise InputError(
            f"{test} has images of {test_size}, but train.npz of {train_size}: they must agree. "
            "Bring all images to one size and one number of channels."
        )
    return sizes[0]


def _check_headers(path: Path) -> tuple[int, int, int]:
    """Return (C, H, W) of a file whose two arrays have the right types and shapes."""
    images, labels = _read_header(path, "images"), _read_header(path, "labels")
    for name, (_, dtype) in (("images", images), ("labels", labels)):
        if dtype.hasobject:
            raise InputError(
                f"{path}: `{name}` is an array of Python objects, which bnlab never unpickles. "
                f"Save {WANTED}; images of several sizes must first be brought to one."
            )
    (image_shape, image_type), (label_shape, label_type) = images, labels
    if image_type != np.uint8:
        raise InputError(f"{path}: `images` is {image_type}, not uint8. Save grey or colour values 0 to 255 as uint8.")
    if label_type.kind not in "iu":
        raise InputError(f"{path}: `labels` is {label_type}, not an integer type. Save class numbers from 0.")
    return _check_shapes(path, image_shape, label_shape)


def _check_shapes(path: Path, images: tuple[int, ...], labels: tuple[int, ...]) -> tuple[int, int, int]:
    if len(images) not in (3, 4):
        raise InputError(f"{path}: `images` has {len(images)} dimensions, {images}: it must be NxHxW or NxHxWxC.")
    if len(labels) != 1:
        raise InputError(f"{path}: `labels` has {len(labels)} dimensions, {labels}: it must have one, N.")
    if 0 in images:
        raise InputError(f"{path} holds no images: `images` has the shape {images}. Save at least one image.")
    if images[0] != labels[0]:
        raise InputError(f"{path} has {images[0]} images but {labels[0]} labels: save one label for each image.")
    if len(images) == 4 and images[1] in (1, 3) and images[3] > 4:
        raise InputError(
            f"{path}: `images` of the shape {images} looks like NxCxHxW: it must be NxHxWxC. "
            "Save images.transpose(0, 2, 3, 1)."
        )
    channels = images[3] if len(images) == 4 else 1
    return channels, images[1], images[2]


def _read_part(path: Path) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) and labels (N,) of a file whose headers were checked."""
    with _member(path, "images") as file:
        stored = np.lib.format.read_array(file, allow_pickle=False)
    channels_last = stored if stored.ndim == 4 else stored[..., None]
    images = torch.from_numpy(np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2)))
    return images, _read_labels(path)


def _read_labels(path: Path) -> Tensor:
    with _member(path, "labels") as file:
        return torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False).astype(np.int64))


def _read_header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a stored array; its values are not read."""
    with _member(path, name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Open one array of an .npz file; damage found while it is read becomes an InputError that names the file."""
    try:
        with ZipFile(path) as archive:
            present = [entry.removesuffix(".npy") for entry in archive.namelist()]
            if name not in present:
                raise InputError(
                    f"{path} has no array `{name}`; it has: {', '.join(present) or 'none'}. Save {WANTED}, "
                    "for example numpy.savez(path, images=images, labels=labels)."
                )
            with archive.open(f"{name}.npy") as file:
                yield file
    except InputError:
        raise
    except (BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: `{name}` cannot be read, the file is damaged or not an .npz: {error}. "
            "Write it again with numpy.savez(path, images=images, labels=labels)."
        ) from error
