"""A run's table of records, `records.csv` or `records.parquet`: its rows, its reader, and the mending of a cut line.

Nothing but the standard library is needed, so that reading commands start at once.
"""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bnlab_callbacks.core.files import numbered
from bnlab_callbacks.core.naming import renamed

_TAIL_BYTES = 4096  # more than any row


class Row(NamedTuple):
    """One recorded value."""

    step: int  # on the axis that `self.log` uses
    epoch: int
    wall_time: float  # seconds since 1970
    quantity: str
    layer: str  # `<NN>_<layer>`, or empty
    value: float


def read_records(path: str | Path) -> Iterator[Row]:
    """The rows of `records.csv` or, by the file's ending, `records.parquet`, in the order they were written.

    A last line without its end, which a killed run may leave, is skipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no table of records.
        ImportError: Parquet without pyarrow.
    """
    path = Path(path)
    yield from _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        lines = csv.reader(line.decode() for line in file if line.endswith(b"\n"))
        header = next(lines, list(Row._fields))
        if header != list(Row._fields):
            raise ValueError(f"{path} is no table of records: its header is {','.join(header)[:80]!r}.")
        try:
            for step, epoch, wall_time, quantity, layer, value in lines:
                yield Row(int(step), int(epoch), float(wall_time), quantity, renamed(layer), float(value))
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path} is no table of records: {error}.") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        if file.schema_arrow.names != list(Row._fields):
            raise ValueError(f"{path} is no table of records: its columns are {file.schema_arrow.names}.")
        for batch in file.iter_batches():
            for row in map(Row._make, zip(*(column.to_pylist() for column in batch.columns), strict=True)):
                yield row._replace(layer=renamed(row.layer))


def tables_in(folder: Path) -> list[list[Path]]:
    """The tables of each run in a folder (`records`, `records-2`, …), those of one with its oldest rows first.

    A run that was resumed after it had written Parquet has both until it ends.
    """
    runs: dict[str, list[Path]] = {}
    for path in (*numbered(folder, "records.parquet"), *numbered(folder, "records.csv")):
        runs.setdefault(path.stem, []).append(path)
    return [runs[stem] for stem in sorted(runs, key=lambda stem: int(stem.partition("-")[2] or 1))]


def last_record(path: Path) -> Row | None:
    """The last whole row of a `records.csv`, found from the file's end; None where there is none yet.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        whole = file.read().split(b"\n")[1:-1]  # without the header or half a row, and what is still being written
    try:
        ((step, epoch, wall_time, quantity, layer, value),) = csv.reader([whole[-1].decode()])
        return Row(int(step), int(epoch), float(wall_time), quantity, renamed(layer), float(value))
    except (IndexError, ValueError, csv.Error):
        return None


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Lines of a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def mend(path: Path) -> None:
    """Cut off a last line without an end.

    Raises:
        ValueError: this is no table of records, and is better left alone.
    """
    with path.open("rb+") as file:
        header = csv_text([Row._fields]).encode()
        first = file.readline(len(header))
        if not header.startswith(first) or (first.endswith(b"\n") and first != header):
            raise ValueError(f"{path} is no table of records: it begins with {first[:80]!r}.")
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - (1 << 16))  # no line is that long
        file.seek(start)
        file.truncate(start + file.read().rfind(b"\n") + 1)
