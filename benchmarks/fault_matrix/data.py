"""The data of the fault matrix: small images, and a table in the shape of images."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.data import load

_FEATURES = 9  # 5 that matter and 4 that do not, as a square


class Images(NamedTuple):
    """Grey values (N, 1, H, W) of 0 … 255 and labels, for training and held out."""

    images: Tensor
    labels: Tensor
    held_images: Tensor
    held_labels: Tensor


@lru_cache
def read(data: str, root: str) -> Images:
    """The digits in their own 8×8 pixels; 6,000 of MNIST's images at half size, 14×14; or Friedman's table."""
    if data == "friedman":
        return _friedman(2000, 500)
    found = load(cast(Any, data), root)
    if data == "digits":
        shrink, n, held = 4, len(found.train_labels), len(found.test_labels)
    else:
        shrink, n, held = 2, 6000, 1000
    return Images(
        F.avg_pool2d(found.train_images[:n].float(), shrink),
        found.train_labels[:n],
        F.avg_pool2d(found.test_images[:held].float(), shrink),
        found.test_labels[:held],
    )


def _friedman(n: int, held: int) -> Images:
    """Friedman's first function of 1991 with noise of deviation 1: targets of 14 ± 5, features of 0 … 255."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n + held, _FEATURES, generator=generator)
    y = 10 * (torch.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.5).square() + 10 * x[:, 3] + 5 * x[:, 4]
    y += torch.randn(n + held, generator=generator)
    images = 255 * x.view(-1, 1, 3, 3)
    return Images(images[:n], y[:n], images[n:], y[n:])
