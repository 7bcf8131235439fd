"""`ImageSet`, which every reader returns: the training and test images of one dataset, their labels checked."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bnlab.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """One dataset in memory, in its native size.

    Images are uint8 of shape (N, C, H, W), labels int64 of shape (N,) in 0 … `num_classes` - 1.
    `padding` is the number of zero pixels to add on each side later: 2 for MNIST, 0 otherwise.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    padding: int = 0


def check_labels(labels: Tensor, num_classes: int, source: Path) -> None:
    """Raise InputError unless every label is in 0 … num_classes - 1; `source` is the file to name.

    A wrong label would otherwise surface much later, as an index error inside the loss.
    """
    if len(labels) == 0:
        raise InputError(f"{source} holds no images: it needs at least one. Write the file again.")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise InputError(f"{source} has the label {lowest}: labels must be 0 or more. Number the classes from 0.")
    if highest >= num_classes:
        raise InputError(
            f"{source} has the label {highest}, outside 0 to {num_classes - 1}: there are {num_classes} classes. "
            "Correct the labels, or replace the file."
        )
