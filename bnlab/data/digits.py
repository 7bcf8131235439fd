"""Scikit-learn's 1,797 handwritten digits: real images that come with the installation."""

from __future__ import annotations

import numpy as np
import torch

from bnlab.data.image_set import ImageSet

TRAIN_SIZE = 646
ENLARGEMENT = 4


def read_digits() -> ImageSet:
    """Return the digits as images (N, 1, 32, 32): the first 646 for training, the other 1,151 for the test.

    Grey values 0 … 16 become 0 … 255, and each of the 8×8 pixels a block of 4×4. The split is fixed and unshuffled.

    Why there: the file names no writers, but its labels repeat the text of one form 14 times (it begins
    0123456789 0123456789 0123456789 9556509898417…, at images 0, 130, 256, …, 646, …), so the images stand form by
    form. The first five forms are for training, few enough for the CNN to train in two minutes on a CPU, and nine for
    the test. Expect a test accuracy below the validation accuracy: the test asks for handwriting that was not seen.
    (13 writers filled in 14 forms; which one did two is not recorded.)
    """
    from sklearn.datasets import load_digits  # slow to import, and of use to this dataset only

    small, labels = load_digits(return_X_y=True)
    grey = np.round(small.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    images = torch.from_numpy(grey.repeat(ENLARGEMENT, axis=2).repeat(ENLARGEMENT, axis=3))
    targets = torch.from_numpy(labels.astype(np.int64))
    return ImageSet(
        images[:TRAIN_SIZE], targets[:TRAIN_SIZE], images[TRAIN_SIZE:], targets[TRAIN_SIZE:], num_classes=10
    )
