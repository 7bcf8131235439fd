"""A tiny net trained for thousands of epochs with every diagnostic on, to see whether anything grows.

    OMP_NUM_THREADS=1 python -m benchmarks.soak --epochs 2000

The run: `bnlab fit`, an MLP with batch norm, dropout and 2 steps an epoch on 40 images of noise, everything recorded at
every step, the smoothness of the loss, heatmaps, gradient histograms, a checkpoint at each epoch. After each epoch:
resident memory, Python's blocks of memory, open files, threads, the bytes that the epoch added to event files and the
rows that it added to records.csv (not bytes: the step's digits grow). A straight line is laid through each after the
first quarter; the temporary folder is removed.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from bnlab.cli.main import main as bnlab
from bnlab_callbacks import GradientHistograms
from tests.resuming.resumed import also

FLAGS = (
    *("--model.batch_norm", "true", "--model.dropout", "0.1", "--data.batch_size", "16"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"),
    *("--early_stopping.patience", "1000000", "--gradients.every_n_steps", "1", "--activations.every_n_steps", "1"),
    *("--batch_norm.every_n_steps", "1", "--batch_norm.smoothness_every_n_steps", "2"),
)


class Sample(NamedTuple):
    """What an epoch left."""

    resident: float  # bytes
    blocks: float  # of memory that Python's allocator has given out
    files: float  # open ones
    threads: float
    events: float  # bytes that were added
    records: float  # rows that were added


class Allowed(NamedTuple):
    """How much of a slope is none."""

    per_epoch: float  # absolute
    share: float  # of the mean, over all epochs


# resident memory: an allocator's pages come and go; blocks: a run's record keeps the seconds of each epoch, a number;
# events: pictures compress better or worse
ALLOWED = Sample(
    resident=Allowed(2048, 0),
    blocks=Allowed(1.5, 0),
    files=Allowed(0, 0.01),
    threads=Allowed(0, 0.01),
    events=Allowed(0, 0.02),
    records=Allowed(0, 0.01),
)


class Sampler(Callback):
    """Looks at this process and a run's folder at the beginning of each epoch, when the one before is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = array("d")  # not objects, which would be counted among the blocks
        self._events, self._read = 0, 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look, once an epoch."""
        if batch_idx == 0:
            before, self._events = self._events, written(self.folder, "events.*")
            events = self._events - before
            self._numbers.extend((resident(), blocks(), open_files(), threads(), events, self._rows()))

    @property
    def samples(self) -> list[Sample]:
        """What each epoch left."""
        return [Sample(*row) for row in np.reshape(self._numbers, (-1, len(Sample._fields))).tolist()]

    def _rows(self) -> int:
        """Rows of records.csv since the last look."""
        path = self.folder / "records.csv"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        return new.count(b"\n")


def resident() -> int:
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def blocks() -> int:
    """Blocks of memory that Python objects hold, after a collection."""
    gc.collect()
    return sys.getallocatedblocks()


def open_files() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    """Threads of this process, those of libraries included."""
    return len(os.listdir("/proc/self/task"))


def written(folder: Path, pattern: str) -> int:
    """Bytes in files of a folder."""
    return sum(path.stat().st_size for path in folder.glob(pattern))


def soak(folder: Path, epochs: int) -> list[Sample]:
    """Train, and return a sample for each epoch."""
    noise = np.random.default_rng(0)
    for part in ("train", "test"):
        images = noise.integers(0, 256, (40, 8, 8), dtype=np.uint8)
        np.savez(folder / f"{part}.npz", images=images, labels=np.arange(40) % 10)
    sampler = Sampler(folder / "run")
    data = ("--data.dataset", "npz", "--data.root", str(folder))
    with also(GradientHistograms()), also(sampler):
        bnlab(["fit", *FLAGS, *data, "--trainer.max_epochs", str(epochs), "--run_folder", str(folder / "run")])
    return sampler.samples


class Line(NamedTuple):
    """A straight line through one quantity."""

    name: str
    mean: float
    slope: float  # per epoch
    flat: bool


def lines(samples: Sequence[Sample]) -> list[Line]:
    """A line through each quantity, the first quarter of the epochs left out, and whether it is flat."""
    start = max(2, len(samples) // 4)
    kept = np.array(samples[start:], dtype=float)
    epochs = np.arange(len(kept))
    found = []
    for name, allowed, column in zip(Sample._fields, ALLOWED, kept.T, strict=True):
        slope = float(np.polyfit(epochs, smooth(column), 1)[0])
        mean = float(column.mean())
        limit = allowed.per_epoch + allowed.share * mean / len(kept)
        found.append(Line(name, mean, slope, abs(slope) <= limit if allowed.share else slope <= limit))
    return found


def smooth(column: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Means over windows of a twentieth: files are written in blocks, not once an epoch."""
    window = max(1, len(column) // 20)
    padded = np.pad(column, (window // 2, window - 1 - window // 2), mode="edge")
    return np.convolve(padded, np.full(window, 1 / window), mode="valid")


def table(found: Sequence[Line], write: Callable[[str], object] = print) -> None:
    """Print a line for each quantity."""
    write(f"{'':10} {'mean':>14} {'slope/epoch':>14}")
    for line in found:
        write(f"{line.name:10} {line.mean:14,.1f} {line.slope:14,.4f}  {'flat' if line.flat else 'GROWS'}")


def main() -> None:
    """Soak, and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--samples", type=Path, help="a file for what each epoch left, as CSV")
    options = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        samples = soak(Path(folder), options.epochs)
    if options.samples:
        np.savetxt(options.samples, samples, fmt="%d", delimiter=",", header=",".join(Sample._fields), comments="")
    print(f"\n{len(samples)} epochs, {time.perf_counter() - begin:.0f} s")
    table(lines(samples))
    quarters = [samples[min(len(samples) - 1, len(samples) * k // 4)] for k in range(1, 5)]
    print("resident memory after each quarter, MB: " + ", ".join(f"{each.resident / 1e6:.1f}" for each in quarters))


if __name__ == "__main__":
    main()
