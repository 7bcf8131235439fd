"""Addresses between files."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def address(target: Path, folder: Path) -> str:
    """A link from a page in `folder`: relative, quoted, and never taken for another scheme."""
    relative = os.path.relpath(target, folder)
    return "./" + quote(os.fsencode(relative))
