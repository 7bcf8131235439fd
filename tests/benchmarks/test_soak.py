"""The soak in short, and its reading of what grows."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak import Sample, lines, soak

FLAT = Sample(resident=8e8, blocks=1e6, files=11, threads=2, events=4e4, records=256)


def test_twelve_epochs_add_the_same_rows_each_and_open_nothing(tmp_path: Path) -> None:
    samples = soak(tmp_path, 12)
    assert len(samples) == 12
    assert {sample.records for sample in samples[3:]} == {256}
    assert {(sample.files, sample.threads) for sample in samples[6:]} == {(samples[6].files, samples[6].threads)}
    assert all(sample.events > 0 for sample in samples)


def test_what_stays_is_flat() -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    samples = [FLAT._replace(resident=8e8 + 1e6 * a, events=4e4 + 1e3 * b) for a, b in noise]
    assert [(line.name, line.flat) for line in lines(samples)] == [(name, True) for name in Sample._fields]


@pytest.mark.parametrize(
    ("name", "per_epoch"),
    [("resident", 3000), ("blocks", 2), ("files", 0.001), ("threads", 0.001), ("events", 1), ("records", 0.01)],
)
def test_what_grows_is_told(name: str, per_epoch: float) -> None:
    samples = [FLAT._replace(**{name: getattr(FLAT, name) + per_epoch * epoch}) for epoch in range(2000)]
    (found,) = (line for line in lines(samples) if line.name == name)
    assert found.slope == pytest.approx(per_epoch, rel=0.05)  # its ends are smoothed
    assert not found.flat
