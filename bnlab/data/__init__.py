"""Images in memory: reading them, splitting them, and feeding them to Lightning."""

from bnlab.data.files import fetch
from bnlab.data.image_set import ImageSet
from bnlab.data.loading import IGNORED, PADDING, Batch, EpochSampler, TensorImages, identity_collate
from bnlab.data.module import ImageDataModule
from bnlab.data.sources import DATASETS, DatasetName, check_dataset_name, describe, load
from bnlab.data.split import pixel_statistics, split_indices

__all__ = [
    "DATASETS",
    "IGNORED",
    "PADDING",
    "Batch",
    "DatasetName",
    "EpochSampler",
    "ImageDataModule",
    "ImageSet",
    "TensorImages",
    "check_dataset_name",
    "describe",
    "fetch",
    "identity_collate",
    "load",
    "pixel_statistics",
    "split_indices",
]
