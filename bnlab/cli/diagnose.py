"""`bnlab diagnose RUN …`: what the diagnoses of finished runs said, side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bnlab.cli.parser import CommandParser
from bnlab.errors import InputError
from bnlab_callbacks.diagnosis.summary import FILE, SCHEMA, lines


def run(words: list[str]) -> None:
    """Print the diagnoses of the runs in some folders."""
    arguments = _parser().parse_args(words[1:])
    found = [file for folder in arguments.runs for file in _files(Path(folder))]
    contents = {str(file.parent): _read(file) for file in dict.fromkeys(found)}
    out: list[str] = []
    if len(contents) > 1:
        out += _side_by_side(contents)
    if len(contents) == 1 or arguments.details:
        for name, content in contents.items():
            out += ["", name, *lines(content)]
    sys.stdout.write("\n".join(out).lstrip("\n") + "\n")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="bnlab diagnose",
        description="What the diagnosis of finished runs said: one run in full, several side by side.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or one with runs below it")
    parser.add_argument("--details", action="store_true", help="several runs in full, too")
    return parser


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give a run's folder, as bnlab fit prints it at its end.")
    found = sorted(folder.rglob(FILE))
    if not found:
        raise InputError(
            f"{folder} holds no {FILE}: bnlab fit writes it at the end of a run, unless --diagnosis.enabled is false."
        )
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise InputError(f"{file} has schema {content['schema']!r}; this bnlab reads {SCHEMA}.")
        lines(content)  # everything that is shown is there
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is no diagnosis that can be read ({type(error).__name__}: {error}).") from error
    return dict(content)


def _side_by_side(contents: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each run: verdict, and what was found, with its first layer and step."""
    rows = [("run", "verdict", "found (first layer, step)")]
    for name, content in contents.items():
        found = [finding for finding in content["findings"] if finding["severity"] != "note"]
        rows.append((name, content["verdict"], "; ".join(_short(finding) for finding in found) or "—"))
    width = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{run.ljust(width[0])}  {verdict.ljust(width[1])}  {found}" for run, verdict, found in rows]


def _short(finding: dict[str, Any]) -> str:
    where = f"{finding['layer']}, " if finding["layer"] else ""
    return f"{finding['name'].replace('_', ' ')} ({where}{finding['since']})"
