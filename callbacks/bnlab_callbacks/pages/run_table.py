"""Finished and running runs as text: diagnoses side by side, and one run's folder in one screen.

Imports neither torch nor Lightning, so that reading commands start at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnlab_callbacks.core.files import numbered
from bnlab_callbacks.core.naming import place_of
from bnlab_callbacks.core.record_table import Row, read_records, tables_in
from bnlab_callbacks.diagnosis.summary import FILE, lines, read

_ANY = "diagnosis*.json"
_WIDTH = 118  # of a screen
_LAYERS = 24  # rows of a table at most
_OTHERS = 5  # runs that are named where a folder is none


@dataclass
class _Ends:
    """The first and the last recorded value of a quantity, at one layer or without one."""

    first: Row
    last: Row

    def text(self, digits: int) -> str:
        """Both, or one where they look the same."""
        first, last = f"{self.first.value:.{digits}g}", f"{self.last.value:.{digits}g}"
        return first if first == last else f"{first}→{last}"


def diagnose_text(folders: Iterable[str | Path], details: bool = False) -> str:
    """The diagnoses of the runs in or below some folders: one run in full, several side by side.

    Args:
        folders: of runs, or with runs below them.
        details: whether several runs are shown in full as well.

    Raises:
        ValueError: a folder is none, holds no `diagnosis.json`, or one that cannot be read.
    """
    files = dict.fromkeys(file for folder in folders for file in _diagnoses(Path(folder)))
    contents = {str(file if file.name != FILE else file.parent): read(file) for file in files}
    out = _side_by_side(contents) if len(contents) > 1 else []
    if len(contents) == 1 or details:
        for name, content in contents.items():
            out += ["", name, *lines(content)]
    return "\n".join(out).lstrip("\n")


def _diagnoses(folder: Path) -> list[Path]:
    _check_folder(folder)
    found = [file for first in sorted({file.parent for file in folder.rglob(_ANY)}) for file in numbered(first, FILE)]
    if not found:
        raise ValueError(
            f"{folder} holds no {FILE}: TrainingDiagnosis writes it into a run's folder at the end of the run. Give "
            "the folder of a run that had one, or one with such runs below it."
        )
    return found


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {what}: give the folder of a run, which holds its records.csv or {FILE}.")


def _side_by_side(contents: Mapping[str, dict[str, Any]]) -> list[str]:
    """A row for each run: verdict, and what was found, with its first layer and step."""
    rows = [("run", "verdict", "found (first layer, step)")]
    for name, content in contents.items():
        found = [finding for finding in content["findings"] if finding["severity"] != "note"]
        rows.append((name, content["verdict"], "; ".join(map(_short, found)) or "—"))
    width = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{run.ljust(width[0])}  {verdict.ljust(width[1])}  {found}" for run, verdict, found in rows]


def _short(finding: Mapping[str, Any]) -> str:
    where = f"{finding['layer']}, " if finding["layer"] else ""
    return f"{finding['name'].replace('_', ' ')} ({where}{finding['since']})"


def show_text(folder: str | Path) -> str:
    """One run's folder in one screen: its diagnosis, first and last recorded values, and which pictures there are.

    Of several runs in one folder each has its part. Values come from `records.csv` or `records.parquet`, by layer where
    they have one. Means over epochs are left out where the quantity itself was recorded. What is missing is left out;
    what is broken is said in a line.

    Args:
        folder: of a run, finished or not.

    Raises:
        ValueError: there is nothing to show.
    """
    folder = Path(folder)
    _check_folder(folder)
    pictures = sorted(path.stem for path in (folder / "heatmaps").glob("*.png"))
    tables, diagnoses = tables_in(folder), numbered(folder, FILE)
    if not (tables or pictures or diagnoses):
        raise ValueError(_nothing_in(folder))
    parts = [[str(folder)], *map(_diagnosis, diagnoses), *map(_records, tables)]
    if pictures:
        parts.append([f"heatmaps ({folder / 'heatmaps'}): {', '.join(pictures)}"])
    return "\n\n".join("\n".join(part) for part in parts if part)


def _nothing_in(folder: Path) -> str:
    found = {path.parent for name in ("records.csv", "records.parquet", FILE) for path in folder.rglob(name)}
    below = [str(run) for run in sorted(found)[:_OTHERS]]
    rest = f" It has {len(found)} runs below it, such as {', '.join(below)}: give one of them." if found else ""
    return f"{folder} holds no records.csv (RecordFile), no {FILE} (TrainingDiagnosis) and no heatmaps.{rest}"


def _diagnosis(file: Path) -> list[str]:
    name = [] if file.name == FILE else [f"{file.name}:"]
    try:
        return [*name, *lines(read(file))]
    except ValueError as error:
        return [str(error)]


def _records(tables: Sequence[Path]) -> list[str]:
    """Tables of the first and last values; and why there are not all, where a file is broken."""
    ends: dict[str, dict[str, _Ends]] = {}
    problems = []
    for path in tables:
        try:
            _collect(read_records(path), ends)
        except ImportError as error:
            problems.append(f"{path} needs pyarrow to be read (pip install pyarrow): {error}")
        except (OSError, ValueError) as error:
            problems.append(f"{path} cannot be read to its end: {error}")
    kept = {
        quantity: layers
        for quantity, layers in ends.items()
        if quantity.removesuffix("_epoch") not in {*ends} - {quantity}
    }
    name = [] if tables[0].stem == "records" else [f"{tables[0].name}:"]
    return [*name, *_tables(kept), *problems]


def _collect(rows: Iterable[Row], ends: dict[str, dict[str, _Ends]]) -> None:
    """Quantity → layer → its first and last value; of a step that was trained twice the later row counts."""
    for row in rows:
        layers = ends.setdefault(row.quantity, {})
        known = layers.setdefault(row.layer, _Ends(row, row))
        known.last = row
        if row.step <= known.first.step:
            known.first = row


def _tables(ends: Mapping[str, Mapping[str, _Ends]]) -> list[str]:
    every = [one for layers in ends.values() for one in layers.values()]
    if not every:
        return []
    last = max((one.last for one in every), key=lambda row: row.wall_time)
    out = [f"recorded up to step {last.step}, epoch {last.epoch}; first→last value, or one where both are the same:"]
    out += _in_columns({quantity: layers[""].text(3) for quantity, layers in sorted(ends.items()) if "" in layers})
    alike: dict[tuple[str, ...], list[str]] = {}  # quantities of the same layers share a table
    zeros = []
    for quantity in sorted(ends):
        texts = {layer: one.text(2) for layer, one in ends[quantity].items() if layer}
        if texts and set(texts.values()) == {"0"}:
            zeros.append(quantity)
        elif texts:
            alike.setdefault(tuple(sorted(texts, key=place_of)), []).append(quantity)
    for layers, quantities in alike.items():
        shown = layers[:_LAYERS]
        columns = [[quantity, *(ends[quantity][layer].text(2) for layer in shown)] for quantity in quantities]
        out += ["", *_blocks(["layer", *shown], columns)]
        if len(layers) > _LAYERS:
            out.append(f"  … and {len(layers) - _LAYERS} more")
    return out + (["", f"  0 at every layer, first and last: {', '.join(zeros)}"] if zeros else [])


def _in_columns(texts: Mapping[str, str]) -> Iterator[str]:
    """Names and texts side by side, as many in a line as the screen's width allows."""
    names, values = (max(map(len, words), default=0) for words in (texts.keys(), texts.values()))
    cells = [f"  {name.ljust(names)}  {text.ljust(values)}" for name, text in texts.items()]
    count = max(1, _WIDTH // (names + values + 4))
    for start in range(0, len(cells), count):
        yield "".join(cells[start : start + count]).rstrip()


def _blocks(names: Sequence[str], columns: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table, in as many blocks below each other as the screen's width needs; an empty line between two."""
    first = ["  " + name.ljust(max(map(len, names))) for name in names]
    block = list(first)
    for column in columns:
        width = max(map(len, column))
        if block != first and len(block[0]) + 2 + width > _WIDTH:
            yield from [*block, ""]
            block = list(first)
        block = [f"{line}  {cell.rjust(width)}" for line, cell in zip(block, column, strict=True)]
    yield from block
