"""The validation split and the pixel statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bnlab.data import pixel_statistics, split_indices
from bnlab.errors import InputError
from tests.helpers.data_files import random_images


@pytest.mark.parametrize(
    ("n", "fraction", "n_val"), [(1297, 0.1, 130), (60_000, 0.1, 6_000), (10, 0.34, 3), (2, 0.5, 1)]
)
def test_parts_are_disjoint_covering_and_of_known_size(n: int, fraction: float, n_val: int) -> None:
    train, val = split_indices(n, fraction, 0)
    assert len(val) == n_val
    assert sorted(train.tolist() + val.tolist()) == list(range(n))


def test_split_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    train, val = split_indices(1000, 0.1, 0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again_train, again_val = split_indices(1000, 0.1, 0)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(train, again_train)
    assert torch.equal(val, again_val)
    assert not torch.equal(val, split_indices(1000, 0.1, 1)[1])


def test_split_is_drawn_at_random() -> None:
    """No stretch of the training set is left out: some files are sorted by class."""
    _, val = split_indices(10_000, 0.1, 0)
    per_tenth = torch.bincount(val // 1000, minlength=10)
    assert per_tenth.min() > 60
    assert per_tenth.max() < 140


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_val_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(InputError, match=rf"val_fraction is {fraction}: it must lie between 0 and 1"):
        split_indices(100, fraction, 0)


@pytest.mark.parametrize(
    ("n", "fraction", "parts"), [(4, 0.1, "4 for training and 0"), (4, 0.9, "0 for training and 4")]
)
def test_empty_part(n: int, fraction: float, parts: str) -> None:
    with pytest.raises(InputError, match=f"{parts} for validation: both need at least one"):
        split_indices(n, fraction, 0)


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_equal_numpys(padding: int, channels: int) -> None:
    images = random_images(0, 50, channels, 9, 7) // 2
    padded = np.pad(images, [(0, 0), (0, 0), (padding, padding), (padding, padding)]).astype(np.float64)
    mean, std = pixel_statistics(torch.from_numpy(images), padding, per_channel=False)
    assert mean.shape == std.shape == (1, 1, 1)
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_allclose(mean.item(), padded.mean(), rtol=1e-7)
    np.testing.assert_allclose(std.item(), padded.std(), rtol=1e-7)
    mean, std = pixel_statistics(torch.from_numpy(images), padding, per_channel=True)
    assert mean.shape == std.shape == (channels, 1, 1)
    np.testing.assert_allclose(mean.flatten(), padded.mean((0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(std.flatten(), padded.std((0, 2, 3)), rtol=1e-7)


def test_constant_images_have_deviation_one() -> None:
    images = torch.full((4, 2, 3, 3), 200, dtype=torch.uint8)
    images[:, 1, 0, 0] = 0
    mean, std = pixel_statistics(images, per_channel=True)
    assert mean[0].item() == 200
    assert std[0].item() == 1
    assert std[1].item() > 1
