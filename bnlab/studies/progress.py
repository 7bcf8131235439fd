"""How far a run is, read from what it has written."""

from __future__ import annotations

import os
from pathlib import Path

_TAIL_BYTES = 4096


def epochs_begun(folder: Path) -> int:
    """The number of epochs that a run has begun, from the last line of its records; 0 before the first record."""
    try:
        with (folder / "records.csv").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[1:-1]  # the first may lack its beginning, the last is not yet whole
    except OSError:
        return 0
    columns = lines[-1].split(b",") if lines else []
    return int(columns[1]) + 1 if len(columns) > 1 and columns[1].isdigit() else 0
