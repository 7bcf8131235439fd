"""Files that are there whole or not at all, whatever happens meanwhile: a kill, a full disk, a power cut."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnlab_callbacks import replace_file


def write_durably(path: Path, content: str | bytes) -> None:
    """Put `content`, text as UTF-8, in the place of a file; its folder is made where it is missing."""
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    replace_durably(path, lambda file: file.write(data))


def replace_durably(path: Path, write: Callable[[Any], None], keep_as: Path | None = None) -> None:
    """Have `write` fill a binary file beside `path`, bring it to the disk, and put it in the place of `path`.

    Args:
        path: the file; its folder is made where it is missing.
        write: is given the open file.
        keep_as: what the file that was there is called from now on; None lets go of it.
    """

    def write_to_disk(new: Path) -> None:
        try:
            with new.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk's has no name
        if keep_as is not None and path.is_file():
            _keep(path, keep_as)

    replace_file(path, write_to_disk)
    sync(path.parent)


def _keep(path: Path, name: Path) -> None:
    """Call a file `name` too, in the place of what had this name; at every moment one of them is whole."""
    link = name.with_name(f".{name.name}.{os.getpid()}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        os.replace(path, name)
    else:
        os.replace(link, name)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if os.name == "nt":  # which cannot do it for folders, nor for files that are open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
