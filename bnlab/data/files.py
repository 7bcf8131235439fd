"""The files that each dataset is read from: their paths, their checksums, their download."""

from http.client import HTTPException
from pathlib import Path

from torchvision import datasets
from torchvision.datasets.utils import download_and_extract_archive, download_url

from bnlab.errors import InputError

CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
DOWNLOADABLE = ("mnist", "svhn", *CIFAR)
MNIST_STEMS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def needed_files(dataset: str, root: Path) -> list[Path]:
    """Return the files that `dataset` is read from, in torchvision's layout; none for `digits`."""
    if dataset == "mnist":
        return [root / "MNIST" / "raw" / f"{stem}-ubyte" for stem in MNIST_STEMS]
    if dataset == "npz":
        return [root / "train.npz", root / "test.npz"]
    return [path for path, _ in checksums(dataset, root)]


def checksums(dataset: str, root: Path) -> list[tuple[Path, str]]:
    """Return (file, expected md5) for the datasets whose files torchvision verifies: SVHN and CIFAR."""
    if dataset == "svhn":
        return [(root / name, md5) for _, name, md5 in (datasets.SVHN.split_list[split] for split in ("train", "test"))]
    if dataset not in CIFAR:
        return []
    reader = CIFAR[dataset]
    meta = (reader.meta["filename"], reader.meta["md5"])
    return [(root / reader.base_folder / name, md5) for name, md5 in (*reader.train_list, *reader.test_list, meta)]


def check_present(dataset: str, root: Path) -> None:
    """Raise InputError, naming the first missing file, unless all files of `dataset` are under `root`."""
    for path in needed_files(dataset, root):
        if not path.is_file():
            place = path.relative_to(root)
            fetching = ", or let --data.download true fetch it" if dataset in DOWNLOADABLE else ""
            raise InputError(
                f"{dataset}: the file {path} is missing. Set --data.root to the folder that holds {place}{fetching}; "
                "--data.dataset digits needs no files."
            )


def fetch(dataset: str, root: str | Path) -> None:
    """Download `dataset` into `root` through torchvision, which shows its progress and checks the md5.

    Does nothing when every file is there, nor for `digits` and `npz`, which are not downloaded.

    Raises:
        InputError: the download failed; the message holds the cause.
    """
    folder = Path(root).expanduser()
    if dataset not in DOWNLOADABLE or all(path.is_file() for path in needed_files(dataset, folder)):
        return
    try:
        _download(dataset, folder)
    except (OSError, RuntimeError, HTTPException, EOFError) as error:  # URLError is an OSError
        raise InputError(
            f"{dataset} could not be downloaded to {folder}: {str(error).strip() or type(error).__name__}. "
            "Check the network and try again, or set --data.root to a folder that has the files; "
            "--data.dataset digits needs no files."
        ) from error


def _download(dataset: str, root: Path) -> None:
    if dataset == "mnist":
        datasets.MNIST(root, download=True)
    elif dataset == "svhn":
        for split in ("train", "test"):
            download_url(datasets.SVHN.split_list[split][0], root, *datasets.SVHN.split_list[split][1:])
    else:  # not through the class, which would not fetch again when only its meta file is missing
        reader = CIFAR[dataset]
        download_and_extract_archive(reader.url, root, filename=reader.filename, md5=reader.tgz_md5)
