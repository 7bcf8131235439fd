"""Deviations between the records of runs that must agree, as a table in Markdown.

    python -m benchmarks.equality_table

The runs are those of tests/callbacks/test_equalities.py.
"""

from __future__ import annotations

import logging
import warnings

import torch

from tests.callbacks.test_equalities import VARIANTS, deviation


def main() -> None:
    """Run every variant and print its row."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print("| variant; compared with | records | values | largest deviation | limit |")
    print("|---|---:|---:|---:|---:|")
    for name, (runs, limit) in VARIANTS.items():
        torch.manual_seed(0)
        ours, theirs = runs()
        values = sum(map(len, ours))
        print(f"| {name} | {len(ours)} | {values} | {deviation(ours, theirs):.1e} | {limit:.0e} |", flush=True)


if __name__ == "__main__":
    main()
