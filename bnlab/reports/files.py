"""Files that are there whole or not at all, and addresses between them."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file beside its place, bring it to the disk, then put it there; a failure leaves nothing behind."""
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def address(target: Path, folder: Path) -> str:
    """A link from a page in `folder`: relative, quoted, and never taken for another scheme."""
    relative = os.path.relpath(target, folder)
    return "./" + quote(os.fsencode(relative))
