"""Files that are there whole or not at all."""

import os
import re
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


def free_name(folder: Path, name: str, *endings: str) -> str:
    """A name for a new file: `name`, or, if that is there, with `-2`, `-3`, … before its ending.

    Args:
        folder: of the file, there or not.
        name: with its ending, such as `records.csv`.
        endings: others under which the name counts as there, such as `.parquet`.
    """
    first = Path(name)
    number = 1
    while True:
        stem = first.stem if number == 1 else f"{first.stem}-{number}"
        if not any((folder / f"{stem}{ending}").exists() for ending in (first.suffix, *endings)):
            return f"{stem}{first.suffix}"
        number += 1


def numbered(folder: Path, name: str) -> list[Path]:
    """The files of a folder that `free_name` may have named, in that order."""
    first = Path(name)
    found = {
        int(match[1] or 1): path
        for path in folder.glob(f"{first.stem}*{first.suffix}")
        if path.is_file() and (match := re.fullmatch(rf"{re.escape(first.stem)}(?:-(\d+))?", path.stem))
    }
    return [found[number] for number in sorted(found)]
