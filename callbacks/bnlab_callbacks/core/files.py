"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file beside `path`, then put it in the place of `path`: a reader never sees half of one.

    Args:
        path: the file; its folder is made where it is missing.
        write: is given the new file's path; if it raises, `path` stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
