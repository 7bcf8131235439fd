"""The `data` section of the command line: images in memory, split, batched, and standardised on the device."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from bnlab.data.files import check_present, fetch
from bnlab.data.image_set import ImageSet
from bnlab.data.loading import Batch, EpochSampler, ResumableLoader, TensorImages, identity_collate
from bnlab.data.sources import DatasetName, check_dataset_name, describe, load
from bnlab.data.split import check_val_fraction, pixel_statistics, split_indices
from bnlab.errors import InputError

Standardize = Literal["global", "channel", "none"]


@dataclass(frozen=True)
class Parts:
    """The three parts of a dataset, and what the training part alone says about pixels."""

    train: TensorImages
    val: TensorImages
    test: TensorImages
    train_indices: Tensor
    val_indices: Tensor
    padding: int
    mean: Tensor
    std: Tensor


class ImageDataModule(LightningDataModule):
    """Images of one dataset, held in memory as uint8 and standardised a batch at a time on the device.

    Batches are (images (B, C, H, W) uint8, labels (B,) int64); `on_after_batch_transfer` makes the images float32.
    Prediction runs over the test images. On several ranks, evaluation adds place-holders with the label -100.

    Args:
        dataset: Which images; digits (embedded, 1,797 images) needs no files, npz reads your own.
        root: Folder of the dataset's files, e.g. root/MNIST/raw, or root/train.npz and root/test.npz.
        batch_size: Images in a batch, on each rank.
        val_fraction: Share of the training images, drawn at random, that becomes the validation set.
        split_seed: Seed of that draw; seed_everything does not affect it.
        standardize: By mean and deviation of all training pixels (global) or of each channel; none divides by 255.
        download: Fetch missing files of mnist, svhn, cifar10 and cifar100 into root.
        num_workers: Loader processes; 0 is fastest, since the images are in memory.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        dataset: DatasetName = "digits",
        root: str = "data",
        batch_size: int = 64,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        standardize: Standardize = "global",
        download: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_dataset_name(dataset)
        check_val_fraction(val_fraction)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: it must be 1 or more. Try --data.batch_size 64.")
        if num_workers < 0:
            raise InputError(f"num_workers is {num_workers}: it must be 0 or more. Try --data.num_workers 0.")
        if standardize not in (choices := get_args(Standardize)):
            raise InputError(
                f"unknown standardisation {standardize!r}: choose --data.standardize from {', '.join(choices)}."
            )
        self.dataset: str = dataset
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.standardize: str = standardize
        self.download = download
        self.num_workers = num_workers
        self._parts: Parts | None = None
        self._statistics_on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes; known before `setup`, like the next two."""
        return self._description[0]

    @property
    def in_channels(self) -> int:
        """Number of channels, C."""
        return self._description[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width (H, W) of the images that the model gets, padding included."""
        return self._description[2]

    @property
    def mean(self) -> Tensor:
        """What is subtracted from the grey levels 0 … 255: float32 (1, 1, 1), or (C, 1, 1) for `channel`."""
        return self._loaded().mean

    @property
    def std(self) -> Tensor:
        """What they are then divided by, of the same shape."""
        return self._loaded().std

    @property
    def train_indices(self) -> Tensor:
        """Indices, into the dataset's own training set, of the images trained on; ascending."""
        return self._loaded().train_indices

    @property
    def val_indices(self) -> Tensor:
        """Indices, into the dataset's own training set, of the validation images; ascending."""
        return self._loaded().val_indices

    @property
    def sample_counts(self) -> dict[str, int]:
        """Number of images in `train`, `val` and `test`."""
        parts = self._loaded()
        return {"train": len(parts.train), "val": len(parts.val), "test": len(parts.test)}

    def prepare_data(self) -> None:
        """Fetch missing files, if `download` is on, and check that all are there; one process per node does this."""
        if self.download:
            fetch(self.dataset, self.root)
        check_present(self.dataset, self.root)

    def setup(self, stage: str | None = None) -> None:
        """Read and split the images, once for all stages."""
        if self._parts is None:
            self._parts = self._split(load(self.dataset, self.root))
        if stage in (None, "fit"):
            self._check_batch_size(len(self._parts.train))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, without the last incomplete batch: BatchNorm1d cannot train on a batch of one."""
        return self._loader(self._loaded().train, train=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every validation image once, in order."""
        return self._loader(self._loaded().val)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every test image once, in order."""
        return self._loader(self._loaded().test)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The same as the test loader, labels included."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make (uint8 images, labels) float: zero-padded, then standardised, on the device where they are.

        Images that are floating point already, and other kinds of batch, pass unchanged.
        """
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            return batch
        images, labels = batch
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            return batch
        mean, std = self._statistics(images.device)
        if padding := self._loaded().padding:
            images = F.pad(images, [padding] * 4)
        standardized = (images - mean).div_(std)
        if self.trainer is not None:  # Lightning casts batches for 64-true and bf16-true before, not after, this hook
            standardized = self.trainer.precision_plugin.convert_input(standardized)
        return standardized, labels

    @cached_property
    def _description(self) -> tuple[int, int, tuple[int, int]]:
        return describe(self.dataset, self.root)

    def _loaded(self) -> Parts:
        if self._parts is None:
            raise RuntimeError("the images are not loaded yet: call prepare_data() and setup() first")
        return self._parts

    def _split(self, images: ImageSet) -> Parts:
        train_indices, val_indices = split_indices(len(images.train_labels), self.val_fraction, self.split_seed)
        train = TensorImages(images.train_images[train_indices], images.train_labels[train_indices])
        val = TensorImages(images.train_images[val_indices], images.train_labels[val_indices])
        test = TensorImages(images.test_images, images.test_labels)
        if self.standardize == "none":
            mean, std = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 255.0)
        else:
            mean, std = pixel_statistics(train.images, images.padding, per_channel=self.standardize == "channel")
        return Parts(train, val, test, train_indices, val_indices, images.padding, mean, std)

    def _check_batch_size(self, n_train: int) -> None:
        ranks = self.trainer.world_size if self.trainer is not None else 1
        if n_train // ranks < self.batch_size:
            share = f" on each of {ranks} ranks" if ranks > 1 else ""
            raise InputError(
                f"batch_size {self.batch_size} is larger than the {n_train // ranks} training images{share}, and "
                "incomplete batches are left out, so there would be none. Choose a smaller --data.batch_size."
            )

    def _loader(self, images: TensorImages, train: bool = False) -> DataLoader[Batch]:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        rank = self.trainer.global_rank if self.trainer is not None else 0
        ranks = self.trainer.world_size if self.trainer is not None else 1
        sampler = EpochSampler(images, train, seed, rank, ranks)
        if train and self.trainer is not None:  # loader processes begin before Lightning tells a resumed run's epoch
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return ResumableLoader(
            images,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=train,
            collate_fn=identity_collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),  # or each pass would advance the global one
        )

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        # kept per device: a copy from host to device at each step would stall it
        if device not in self._statistics_on:
            self._statistics_on[device] = self.mean.to(device), self.std.to(device)
        return self._statistics_on[device]
