"""Every reader against files in their true formats, and every message that a wrong file gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, SVHN

import bnlab.data.files
from bnlab.data import DATASETS, ImageSet, describe, fetch, load
from bnlab.errors import InputError
from tests.helpers.data_files import (
    class_numbers,
    md5,
    npz_arrays,
    random_images,
    write_cifar10,
    write_cifar100,
    write_idx,
    write_mnist,
    write_npz,
    write_svhn,
)


def equal(tensor: torch.Tensor, array: Any) -> bool:
    """Whether a tensor holds just these values, in this shape."""
    return tensor.shape == array.shape and bool((tensor.numpy() == array).all())


def check_types(images: ImageSet) -> None:
    """Assert the promises that hold for every dataset."""
    for pixels, labels in (
        (images.train_images, images.train_labels),
        (images.test_images, images.test_labels),
    ):
        assert pixels.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert pixels.is_contiguous()
        assert len(pixels) == len(labels)


# what each reader returns


def test_digits_are_scikit_learns_enlarged() -> None:
    images = load("digits", "nowhere")
    check_types(images)
    original = load_digits()
    assert images.train_images.shape == (646, 1, 32, 32)
    assert images.test_images.shape == (1151, 1, 32, 32)
    pixels = torch.cat([images.train_images, images.test_images])[:, 0]
    expected = np.kron(np.round(original.images * 255 / 16), np.ones((4, 4)))
    assert equal(pixels, expected)
    assert pixels.max() == 255
    assert equal(torch.cat([images.train_labels, images.test_labels]), original.target)
    assert (images.num_classes, images.padding) == (10, 0)


def test_digits_stand_form_by_form() -> None:
    """What the docstring of read_digits says about the labels."""
    text = "".join(map(str, load_digits().target))
    starts = [i - 31 for i in range(len(text)) if text.startswith("9556509898417", i)]
    assert len(starts) == 14
    assert starts[:8] == [0, 130, 256, 386, 516, 646, 776, 905]


def test_mnist_reads_its_idx_files(tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path)
    images = load("mnist", tmp_path)
    check_types(images)
    assert equal(images.train_images[:, 0], arrays["train-images-idx3-ubyte"])
    assert equal(images.train_labels, arrays["train-labels-idx1-ubyte"])
    assert equal(images.test_images[:, 0], arrays["t10k-images-idx3-ubyte"])
    assert equal(images.test_labels, arrays["t10k-labels-idx1-ubyte"])
    assert (images.num_classes, images.padding) == (10, 2)


def test_svhn_reads_its_mat_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = write_svhn(tmp_path, monkeypatch)
    images = load("svhn", str(tmp_path))
    check_types(images)
    assert equal(images.train_images, arrays["train"].transpose(3, 2, 0, 1))
    assert equal(images.test_images, arrays["test"].transpose(3, 2, 0, 1))
    assert images.train_labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert images.test_labels.tolist() == [1, 2, 3, 4, 5]
    assert (images.num_classes, images.padding) == (10, 0)


def test_svhn_of_one_image_keeps_its_dimensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path, monkeypatch, n_test=1)
    images = load("svhn", tmp_path)
    assert images.test_images.shape == (1, 3, 32, 32)
    assert images.test_labels.tolist() == [1]


def test_cifar10_reads_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_cifar10(tmp_path, monkeypatch)
    images = load("cifar10", tmp_path)
    check_types(images)
    train = np.concatenate([rows[f"data_batch_{k}"] for k in range(1, 6)])
    assert equal(images.train_images, train.reshape(-1, 3, 32, 32))
    assert equal(images.test_images, rows["test_batch"].reshape(-1, 3, 32, 32))
    assert images.train_labels.tolist() == [(batch + i) % 10 for batch in range(5) for i in range(4)]
    assert images.test_labels.tolist() == [5, 6, 7, 8]
    assert (images.num_classes, images.padding) == (10, 0)


def test_cifar100_reads_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_cifar100(tmp_path, monkeypatch)
    images = load("cifar100", tmp_path)
    check_types(images)
    assert equal(images.train_images, rows["train"].reshape(-1, 3, 32, 32))
    assert equal(images.test_images, rows["test"].reshape(-1, 3, 32, 32))
    assert equal(images.train_labels, class_numbers(20, 100))
    assert equal(images.test_labels, class_numbers(5, 100))
    assert (images.num_classes, images.padding) == (100, 0)


def test_npz_reads_colour_images(tmp_path: Path) -> None:
    train, test = npz_arrays(9), npz_arrays(5, seed=1)
    write_npz(tmp_path, train, test)
    images = load("npz", tmp_path)
    check_types(images)
    assert equal(images.train_images, train["images"].transpose(0, 3, 1, 2))
    assert equal(images.test_images, test["images"].transpose(0, 3, 1, 2))
    assert equal(images.train_labels, train["labels"])
    assert equal(images.test_labels, test["labels"])
    assert (images.num_classes, images.padding) == (4, 0)
    assert describe("npz", tmp_path) == (4, 3, (6, 5))


def test_npz_reads_grey_images_compressed(tmp_path: Path) -> None:
    train, test = npz_arrays(9, size=(7, 3)), npz_arrays(5, seed=1, size=(7, 3))
    train["labels"] = train["labels"].astype(">u2")
    np.savez_compressed(tmp_path / "train.npz", **train)
    np.savez_compressed(tmp_path / "test.npz", **test)
    images = load("npz", tmp_path)
    check_types(images)
    assert equal(images.train_images, train["images"][:, None])
    assert equal(images.train_labels, train["labels"])
    assert describe("npz", tmp_path) == (4, 1, (7, 3))


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("digits", (10, 1, (32, 32))),
        ("mnist", (10, 1, (32, 32))),
        ("svhn", (10, 3, (32, 32))),
        ("cifar10", (10, 3, (32, 32))),
        ("cifar100", (100, 3, (32, 32))),
    ],
)
def test_known_datasets_are_described_without_files(dataset: str, expected: object) -> None:
    assert describe(dataset, "nowhere") == expected


def test_npz_is_described_without_reading_images(tmp_path: Path) -> None:
    write_npz(tmp_path, npz_arrays(400), npz_arrays(5))
    content = (tmp_path / "train.npz").read_bytes()
    middle = len(content) // 3  # inside the images
    (tmp_path / "train.npz").write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    assert describe("npz", tmp_path) == (4, 3, (6, 5))
    with pytest.raises(InputError, match=r"train\.npz: `images` cannot be read.*damaged"):
        load("npz", tmp_path)


# what every dataset may get wrong


@pytest.mark.parametrize("function", [load, describe])
def test_unknown_dataset_lists_the_known(function: Any) -> None:
    with pytest.raises(InputError, match=r"unknown dataset 'imagenet'.*digits, mnist, svhn, cifar10, cifar100, npz"):
        function("imagenet", "data")


@pytest.mark.parametrize(
    ("dataset", "first_file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("svhn", "train_32x32.mat"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("npz", "train.npz"),
    ],
)
def test_missing_files_are_named(tmp_path: Path, dataset: str, first_file: str) -> None:
    with pytest.raises(InputError) as error:
        load(dataset, tmp_path)
    message = str(error.value)
    assert f"{tmp_path / first_file} is missing" in message
    assert f"Set --data.root to the folder that holds {Path(first_file)}" in message
    assert "--data.dataset digits needs no files" in message
    assert ("--data.download" in message) == (dataset != "npz")


def test_missing_npz_cannot_be_described(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", **npz_arrays(5))
    with pytest.raises(InputError, match=r"test\.npz is missing"):
        describe("npz", tmp_path)


# downloads


def refuse(*args: object, **options: object) -> None:
    """Stand for a machine without a network."""
    raise URLError("no route to host")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every download of torchvision fail as without a network."""
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", refuse)
    monkeypatch.setattr(bnlab.data.files, "download_and_extract_archive", refuse)
    monkeypatch.setattr(bnlab.data.files, "download_url", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("dataset", ["mnist", "svhn", "cifar10", "cifar100"])
def test_failed_download_says_why_and_what_next(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(InputError) as error:
        fetch(dataset, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{dataset} could not be downloaded to {tmp_path}")
    assert "no route to host" in message
    assert "Check the network" in message
    assert "--data.dataset digits needs no files" in message


@pytest.mark.usefixtures("offline")
def test_nothing_is_downloaded_when_files_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    write_svhn(tmp_path, monkeypatch)
    write_cifar10(tmp_path, monkeypatch)
    write_cifar100(tmp_path, monkeypatch)
    for dataset in DATASETS:
        fetch(dataset, tmp_path)


def test_fetch_downloads_what_load_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls to torchvision's own functions are the right ones; they bring prepared files."""
    prepared, root = tmp_path / "prepared", tmp_path / "root"
    write_mnist(prepared)
    write_svhn(prepared, monkeypatch)
    write_cifar10(prepared, monkeypatch)
    asked: list[tuple[str, str | None]] = []

    def bring(url: str, where: object, filename: str, md5: str | None = None) -> None:
        asked.append((url.rsplit("/", 1)[1], md5))
        for path in prepared.rglob("*"):
            target = root / path.relative_to(prepared)
            if path.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    monkeypatch.setattr(bnlab.data.files, "download_and_extract_archive", bring)
    monkeypatch.setattr(bnlab.data.files, "download_url", bring)
    fetch("svhn", root)
    assert asked == [(name, md5) for _, name, md5 in SVHN.split_list.values()]
    (root / "cifar-10-batches-py" / "batches.meta").unlink()  # torchvision's class would not fetch it again
    fetch("cifar10", root)
    assert asked[2:] == [(CIFAR10.filename, CIFAR10.tgz_md5)]
    for dataset in ("svhn", "cifar10", "mnist"):
        load(dataset, root)


def test_fetch_downloads_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {}

    def bring(url: str, download_root: str, filename: str, md5: str) -> None:
        arrays.update(write_mnist(tmp_path))

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", bring)
    fetch("mnist", tmp_path)
    assert equal(load("mnist", tmp_path).train_labels, arrays["train-labels-idx1-ubyte"])


# MNIST's files


def damage_mnist(root: Path, name: str, content: bytes) -> str:
    """Replace one of MNIST's files; return the message that reading then gives."""
    path = root / "MNIST" / "raw" / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load("mnist", root)
    message = str(error.value)
    assert str(path) in message
    assert "Delete" in message
    assert "to download" in message
    return message


def mnist_bytes(root: Path, name: str) -> bytes:
    """Write MNIST and return the bytes of one of its files."""
    write_mnist(root)
    return (root / "MNIST" / "raw" / name).read_bytes()


IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def test_truncated_mnist_file(tmp_path: Path) -> None:
    content = mnist_bytes(tmp_path, IMAGES)
    message = damage_mnist(tmp_path, IMAGES, content[:-1])
    assert (
        f"truncated: its header announces 30 items, so expected {16 + 30 * 784} bytes, found {15 + 30 * 784}" in message
    )


def test_truncated_mnist_labels(tmp_path: Path) -> None:
    content = mnist_bytes(tmp_path, LABELS)
    assert "expected 15 bytes, found 12" in damage_mnist(tmp_path, LABELS, content[:-3])


def test_overlong_mnist_file(tmp_path: Path) -> None:
    content = mnist_bytes(tmp_path, LABELS)
    assert "garbled: its header announces 7 items, so expected 15 bytes, found 16" in damage_mnist(
        tmp_path, LABELS, content + b"\0"
    )


@pytest.mark.parametrize("length", [0, 9])
def test_mnist_file_without_a_whole_header(tmp_path: Path, length: int) -> None:
    content = mnist_bytes(tmp_path, IMAGES)
    message = damage_mnist(tmp_path, IMAGES, content[:length])
    assert f"its header needs 16 bytes, found {length}" in message


def test_mnist_file_with_a_wrong_magic_number(tmp_path: Path) -> None:
    mnist_bytes(tmp_path, IMAGES)
    message = damage_mnist(tmp_path, IMAGES, b"<!DOCTYPE html><html></html>")
    assert "must begin with 0x00000803, found 0x3c21444f" in message


def test_mnist_images_of_a_wrong_size(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / "other", random_images(0, 30, 8, 9))
    message = damage_mnist(tmp_path, IMAGES, (tmp_path / "other").read_bytes())
    assert "its images must be 28x28, found 8x9" in message


def test_mnist_images_and_labels_that_disagree(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / "other", random_images(0, 29, 28, 28))
    message = damage_mnist(tmp_path, IMAGES, (tmp_path / "other").read_bytes())
    assert "29 images but train-labels-idx1-ubyte has 30 labels" in message


def test_mnist_label_out_of_range(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / LABELS
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(InputError, match=f"{LABELS} has the label 10, outside 0 to 9"):
        load("mnist", tmp_path)


# files with an md5


def check_damage(dataset: str, root: Path, path: Path) -> None:
    """Flip a bit of a file, and assert the message that reading then gives."""
    intact = md5(path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError) as error:
        load(dataset, root)
    message = str(error.value)
    assert f"{path} is damaged: its md5 must be {intact}, found {md5(path)}" in message
    assert "Delete the file to download it again" in message


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_cifar10_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_cifar10(tmp_path, monkeypatch)
    check_damage("cifar10", tmp_path, tmp_path / "cifar-10-batches-py" / name)


def test_damaged_cifar100_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path, monkeypatch)
    check_damage("cifar100", tmp_path, tmp_path / "cifar-100-python" / "test")


@pytest.mark.parametrize("name", ["train_32x32.mat", "test_32x32.mat"])
def test_broken_mat_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_svhn(tmp_path, monkeypatch)
    check_damage("svhn", tmp_path, tmp_path / name)


def test_svhn_label_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path, monkeypatch)
    path = tmp_path / "test_32x32.mat"
    scipy.io.savemat(path, {"X": random_images(0, 32, 32, 3, 2), "y": np.array([[3], [12]], np.uint8)})
    monkeypatch.setitem(SVHN.split_list, "test", ["", path.name, md5(path)])
    with pytest.raises(InputError, match="has the label 12, outside 0 to 9"):
        load("svhn", tmp_path)


# npz files


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_npz_that_is_no_zip(tmp_path: Path, part: str, content: bytes) -> None:
    write_npz(tmp_path, npz_arrays(8), npz_arrays(8))
    (tmp_path / f"{part}.npz").write_bytes(content)
    for function in (load, describe):
        with pytest.raises(
            InputError, match=rf"{part}\.npz.*damaged or not an \.npz.*Write it again with numpy\.savez"
        ):
            function("npz", tmp_path)


def without(name: str) -> dict[str, Any]:
    """Return arrays from which one is missing."""
    return {key: value for key, value in npz_arrays(8).items() if key != name}


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no images": (without("images"), r"no array `images`; it has: labels"),
    "no labels": (without("labels"), r"no array `labels`; it has: images"),
    "float images": ({"images": np.zeros((8, 6, 5, 3), np.float32)}, r"`images` is float32, not uint8"),
    "float labels": ({"labels": np.zeros(8)}, r"`labels` is float64, not an integer type"),
    "bool labels": ({"labels": np.zeros(8, bool)}, r"`labels` is bool, not an integer type"),
    "flat images": ({"images": np.zeros((8, 90), np.uint8)}, r"`images` has 2 dimensions, \(8, 90\)"),
    "one-hot labels": ({"labels": np.eye(8, dtype=int)}, r"`labels` has 2 dimensions, \(8, 8\): it must have one"),
    "too few labels": ({"labels": np.zeros(7, int)}, r"8 images but 7 labels"),
    "empty": ({"images": np.zeros((0, 6, 5, 3), np.uint8), "labels": np.zeros(0, int)}, r"holds no images"),
    "no pixels": ({"images": np.zeros((8, 0, 5, 3), np.uint8)}, r"holds no images.*\(8, 0, 5, 3\)"),
    "object images": ({"images": np.array([b"a", None] * 4, object)}, r"`images` is an array of Python objects"),
    "object labels": ({"labels": np.array([0, 1] * 4, object)}, r"`labels` is an array of Python objects"),
    "negative label": ({"labels": np.array([0, -1] * 4)}, r"has the label -1: labels must be 0 or more"),
    "channels first": ({"images": np.zeros((8, 3, 6, 5), np.uint8)}, r"looks like NxCxHxW: it must be NxHxWxC"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
@pytest.mark.parametrize("part", ["train", "test"])
def test_npz_with_wrong_arrays(tmp_path: Path, case: str, part: str) -> None:
    bad, message = BAD_ARRAYS[case]
    arrays = bad if case in ("no images", "no labels") else {**npz_arrays(8), **bad}
    write_npz(tmp_path, **{"train": npz_arrays(8), "test": npz_arrays(8), part: arrays})
    with pytest.raises(InputError, match=rf"{part}\.npz.*{message}"):
        load("npz", tmp_path)


class Bomb:
    """Makes unpickling visible."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("was unpickled",)


def test_npz_objects_are_never_unpickled(tmp_path: Path) -> None:
    write_npz(tmp_path, {**npz_arrays(1), "images": np.array([Bomb()], object)}, npz_arrays(1))
    for function in (load, describe):
        with pytest.raises(InputError, match="which bnlab never unpickles"):
            function("npz", tmp_path)


@pytest.mark.parametrize("size", [(6, 4, 3), (7, 5, 3), (6, 5, 1), (6, 5)])
def test_npz_test_images_of_another_size(tmp_path: Path, size: tuple[int, ...]) -> None:
    write_npz(tmp_path, npz_arrays(8), npz_arrays(8, size=size))
    for function in (load, describe):
        with pytest.raises(InputError, match=r"test\.npz has images of C=.*, but train\.npz of C=3 H=6 W=5"):
            function("npz", tmp_path)


def test_npz_test_label_beyond_the_training_labels(tmp_path: Path) -> None:
    write_npz(tmp_path, npz_arrays(8, num_classes=4), npz_arrays(8, num_classes=5))
    with pytest.raises(InputError, match=r"test\.npz has the label 4, outside 0 to 3: there are 4 classes"):
        load("npz", tmp_path)
