"""Batches straight from memory, and a sampler that gives every rank its share."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from bnlab.errors import InputError

PADDING = -1
"""Index of a place-holder sample, which fills up the last batches of an evaluation on several ranks."""

IGNORED = -100
"""Label of a place-holder: PyTorch's cross entropy ignores it by default; metrics get `ignore_index=IGNORED`."""

Batch = tuple[Tensor, Tensor]


class TensorImages(Dataset[Batch]):
    """Images (N, C, H, W) uint8 and labels (N,) int64 in memory, fetched a batch at a time.

    The index PADDING gives a place-holder: some real image, with the label IGNORED.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        """Return one image (C, H, W) and its label ()."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return images (B, C, H, W) and labels (B,); the loader calls this with a whole batch of indices."""
        wanted = torch.tensor(indices, dtype=torch.int64)
        existing = wanted.clamp(min=0)  # index_select, ten times as fast as [], takes no negative index
        labels = self.labels.index_select(0, existing).masked_fill_(wanted == PADDING, IGNORED)
        return self.images.index_select(0, existing), labels


def identity_collate(batch: Batch | list[Batch]) -> Batch:
    """Return a batch that `__getitems__` made as it is; stack a list of single samples."""
    if isinstance(batch, tuple):
        return batch
    images, labels = zip(*batch, strict=True)
    return torch.stack(images), torch.stack(labels)


class EpochSampler(DistributedSampler[Any]):
    """One rank's indices: shuffled for training, in order for evaluation.

    Lightning leaves a DistributedSampler as it is, and calls its `set_epoch` before every epoch.

    Shuffled: the order is a function of `seed` and the epoch alone; rank r of R takes every R-th index from r on,
    floor(N / R) of them, so that batch k of R ranks holds the same samples as batch k of one process with an R times
    larger batch. In order: rank r takes r, r + R, …, filled up with PADDING to ceil(N / R), so that all ranks run the
    same number of batches and no sample counts twice.

    Args:
        dataset: what the indices point into; only its length is used.
        shuffle: whether this is training.
        seed: seed of the shuffled order, 0 or more.
        rank: this process's number, from 0.
        world_size: the number of processes.
    """

    def __init__(self, dataset: TensorImages, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        # drop_last gives num_samples its floor, without it the ceiling
        super().__init__(dataset, world_size, rank, shuffle=shuffle, seed=seed, drop_last=shuffle)
        self._size = len(dataset)
        self.skipped = 0
        """How many indices the next pass leaves out at its beginning; the passes after it leave out none."""

    def __iter__(self) -> Iterator[int]:
        order = self._shuffled() if self.shuffle else torch.arange(self._size)
        share = order[self.rank :: self.num_replicas][: self.num_samples]
        missing = share.new_full((self.num_samples - len(share),), PADDING)
        skipped, self.skipped = self.skipped, 0
        return iter(torch.cat([share, missing])[skipped:].tolist())

    def _shuffled(self) -> Tensor:
        # seed + epoch, torch's own way, would make epoch 1 of seed 0 the same as epoch 0 of seed 1
        mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        return torch.randperm(self._size, generator=torch.Generator().manual_seed(int(mixed[0])))


class ResumableLoader(DataLoader[Batch]):
    """A DataLoader over an EpochSampler that can begin in the middle of an epoch.

    It has the methods that Lightning asks of such a loader; where an epoch stands, the loop itself knows best, and
    writes it into the checkpoint.
    """

    def state_dict(self) -> dict[str, int]:
        """The beginning of an epoch."""
        return {"batches": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out, in the next pass, the first `batches` batches.

        Raises:
            InputError: Lightning has put another sampler in the place of the EpochSampler.
        """
        if not isinstance(self.sampler, EpochSampler) or self.batch_size is None:
            raise InputError(
                "the checkpoint lies within an epoch, where a run with --trainer.overfit_batches cannot go on."
            )
        self.sampler.skipped = state["batches"] * self.batch_size
