"""Validation split and pixel statistics: pure functions of their arguments."""

import torch
from torch import Tensor

from bnlab.errors import InputError


def check_val_fraction(val_fraction: float) -> None:
    """Raise InputError unless the validation share lies between 0 and 1, both excluded."""
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction is {val_fraction}: it must lie between 0 and 1. Try --data.val_fraction 0.1.")


def split_indices(n: int, val_fraction: float, split_seed: int) -> tuple[Tensor, Tensor]:
    """Return (training, validation) indices, int64, ascending: disjoint, and together 0 … n - 1.

    The validation part has round(n · val_fraction) members, drawn by a generator of its own, so that the split is the
    same under every global seed, stage and rank, and the global generator is left alone.

    Raises:
        InputError: val_fraction outside (0, 1), or a part would be empty.
    """
    check_val_fraction(val_fraction)
    n_val = round(n * val_fraction)
    if n_val == 0 or n_val == n:
        raise InputError(
            f"val_fraction {val_fraction} of {n} images gives {n - n_val} for training and {n_val} for validation: "
            "both need at least one. Change --data.val_fraction or add images."
        )
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(split_seed))
    return shuffled[n_val:].sort().values, shuffled[:n_val].sort().values


def pixel_statistics(images: Tensor, padding: int = 0, per_channel: bool = False) -> tuple[Tensor, Tensor]:
    """Return mean and (population) standard deviation of uint8 images (N, C, H, W), in grey levels 0 … 255.

    Both are float32 of shape (C, 1, 1) if `per_channel`, else (1, 1, 1). The images count as zero-padded by `padding`
    on each side. Exact: from integer histograms, in float64. Constant images get 1 instead of 0 as their deviation,
    so that dividing by it gives zeros, never NaN.
    """
    n, channels, height, width = images.shape
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(channels)])
    counts[:, 0] += n * ((height + 2 * padding) * (width + 2 * padding) - height * width)
    if not per_channel:
        counts = counts.sum(0, keepdim=True)
    levels = torch.arange(256)
    pixels = counts.sum(1, keepdim=True)
    mean = (counts * levels).sum(1, keepdim=True).double() / pixels
    std = ((counts * (levels - mean).square()).sum(1, keepdim=True) / pixels).sqrt()
    std[std == 0] = 1.0
    return mean.float().reshape(-1, 1, 1), std.float().reshape(-1, 1, 1)
