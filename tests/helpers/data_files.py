"""Writes small datasets in their true on-disk formats, from images that a test knows byte for byte."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.io
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

UInt8 = npt.NDArray[np.uint8]


def random_images(seed: int, *shape: int) -> UInt8:
    """Return uint8 noise of the given shape."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def class_numbers(n: int, num_classes: int) -> npt.NDArray[np.int64]:
    """Return n labels that go through the classes in turn, the last class first."""
    return (num_classes - 1 - np.arange(n)) % num_classes


def md5(path: Path) -> str:
    """Return a file's md5 as torchvision's tables hold it."""
    return hashlib.md5(path.read_bytes()).hexdigest()


# MNIST: big-endian IDX files


def write_idx(path: Path, array: UInt8) -> None:
    """Write an array of unsigned bytes as an IDX file: 0, 0, type 8, number of dimensions, lengths, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root: Path, n_train: int = 30, n_test: int = 7) -> dict[str, UInt8]:
    """Write the four files of root/MNIST/raw and return their arrays by file name."""
    arrays = {
        "train-images-idx3-ubyte": random_images(0, n_train, 28, 28),
        "train-labels-idx1-ubyte": class_numbers(n_train, 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": random_images(1, n_test, 28, 28),
        "t10k-labels-idx1-ubyte": class_numbers(n_test, 10).astype(np.uint8),
    }
    for name, array in arrays.items():
        write_idx(root / "MNIST" / "raw" / name, array)
    return arrays


# SVHN: MATLAB 5 files


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch, n_train: int = 12, n_test: int = 5) -> dict[str, UInt8]:
    """Write both .mat files, X of 32×32×3×N and y of N×1 with 10 for zero; return the X by split."""
    root.mkdir(parents=True, exist_ok=True)
    images, table = {}, {}
    for split, n in (("train", n_train), ("test", n_test)):
        images[split] = random_images(n, 32, 32, 3, n)
        labels = (np.arange(n) % 10 + 1).astype(np.uint8).reshape(n, 1)
        path = root / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": images[split], "y": labels}, do_compression=True)
        table[split] = [SVHN.split_list[split][0], path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", table)
    return images


# CIFAR: pickles written by Python 2 and a numpy of its time


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes bytes as Python 2 wrote its str, which is how the keys, names and pixels of CIFAR are stored."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined] # noqa: RUF012

    def _save_str(self, text: bytes) -> None:
        if len(text) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(text)]) + text)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    dispatch[bytes] = _save_str


def write_python2_pickle(path: Path, content: dict[bytes, Any]) -> None:
    """Write a protocol 2 pickle with the module names and dtype arguments of the old numpy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    written = path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    path.write_bytes(written.replace(b"\x89\x88\x87", b"K\x00K\x01\x87"))  # dtype("u1", 0, 1), not (…, False, True)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, per_batch: int = 4) -> dict[str, UInt8]:
    """Write five training batches, the test batch and batches.meta; return the rows (N, 3072) by file name."""
    folder = root / "cifar-10-batches-py"
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    rows = {}
    for seed, name in enumerate(names):
        rows[name] = random_images(seed, per_batch, 3072)
        labels = [(seed + i) % 10 for i in range(per_batch)]
        write_python2_pickle(
            folder / name,
            {b"data": rows[name], b"labels": labels, b"batch_label": b"batch", b"filenames": [b"x.png"] * per_batch},
        )
    write_python2_pickle(folder / "batches.meta", {b"label_names": [b"class"] * 10, b"num_cases_per_batch": per_batch})
    _patch_md5(monkeypatch, CIFAR10, folder)
    return rows


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch, n_train: int = 20, n_test: int = 5) -> dict[str, UInt8]:
    """Write train, test and meta; return the rows (N, 3072) by file name. Image i has the fine label 99 - i."""
    folder = root / "cifar-100-python"
    rows = {"train": random_images(0, n_train, 3072), "test": random_images(1, n_test, 3072)}
    for name, data in rows.items():
        fine = class_numbers(len(data), 100).tolist()
        coarse = [label // 5 for label in fine]
        write_python2_pickle(folder / name, {b"data": data, b"fine_labels": fine, b"coarse_labels": coarse})
    write_python2_pickle(folder / "meta", {b"fine_label_names": [b"class"] * 100, b"coarse_label_names": [b"c"] * 20})
    _patch_md5(monkeypatch, CIFAR100, folder)
    return rows


def _patch_md5(monkeypatch: pytest.MonkeyPatch, reader: Any, folder: Path) -> None:
    monkeypatch.setattr(reader, "train_list", [[name, md5(folder / name)] for name, _ in reader.train_list])
    monkeypatch.setattr(reader, "test_list", [[name, md5(folder / name)] for name, _ in reader.test_list])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5(folder / reader.meta["filename"])})


# npz


def npz_arrays(n: int, seed: int = 0, size: tuple[int, ...] = (6, 5, 3), num_classes: int = 4) -> dict[str, Any]:
    """Return `images` (N, *size) and `labels` (N,) with every class among them."""
    return {"images": random_images(seed, n, *size), "labels": class_numbers(n, num_classes)}


def write_npz(root: Path, train: dict[str, Any], test: dict[str, Any]) -> None:
    """Write train.npz and test.npz with whatever arrays are given, object arrays included."""
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "train.npz", **train)
    np.savez(root / "test.npz", **test)
