"""The fits of one library, in its environment: `python -m benchmarks.public_libraries.run NAME --out FILE`."""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch


def main() -> None:
    """Append a line of JSON to the file for each fit, as soon as it is made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="fits whose name has this in it")
    parser.add_argument("--verdicts", action="store_true", help="with the callbacks alone")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums over threads may differ from run to run
    warnings.simplefilter("ignore")
    library = import_module(f"benchmarks.public_libraries.libraries.{options.library}")
    from benchmarks.public_libraries.watched_fits import both_ways  # the library chooses which Lightning is imported

    with tempfile.TemporaryDirectory(prefix="public_libraries_") as folder, options.out.resolve().open("a") as out:
        os.chdir(folder)
        for name, train in library.FITS.items():
            if options.only in name:
                release = version(library.DISTRIBUTION)
                for row in both_ways(options.library, release, name, train, options.verdicts):
                    print(row.to_json(), file=out, flush=True)
        os.chdir("/")


if __name__ == "__main__":
    main()
