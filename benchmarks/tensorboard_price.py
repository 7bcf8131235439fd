"""TensorBoard's own price of a value: many in one summary, as the callbacks write them, and one by one.

    python -m benchmarks.tensorboard_price [--rounds 7]

Time until the events are in the file, a flush after each 20 steps; medians over rounds.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from statistics import median
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

STEPS = 20


def seconds_a_step(write: Callable[[], None], writer: Any, rounds: int) -> float:
    """What one call of `write` takes."""
    found = []
    for _ in range(rounds):
        writer.flush()
        begun = time.perf_counter()
        for _ in range(STEPS):
            write()
        writer.flush()
        found.append((time.perf_counter() - begun) / STEPS)
    return median(found)


def main() -> None:
    """Print µs a value for steps of 12, 48 and 400 values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(f"tensorboard {version('tensorboard')}, Python {platform.python_version()}, {platform.machine()}")
    with tempfile.TemporaryDirectory() as folder:
        writer: Any = SummaryWriter(folder)
        for count in (12, 48, 400):
            values = {f"grad_rms/{index:02d}_net.layer{index}": 0.5 for index in range(count)}

            def together(values: dict[str, float] = values) -> None:
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
                writer.file_writer.add_summary(summary, 1)

            def one_by_one(values: dict[str, float] = values) -> None:
                for tag, value in values.items():
                    writer.add_scalar(tag, value, 1)

            prices = [1e6 * seconds_a_step(write, writer, rounds) / count for write in (together, one_by_one)]
            print(f"{count} values a step: {prices[0]:.1f} µs a value in one summary, {prices[1]:.1f} µs one by one")
        writer.close()


if __name__ == "__main__":
    main()
