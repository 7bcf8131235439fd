"""`bnlab report`: a folder of runs as tables, figures and one page, beside the thesis's."""

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bnlab.cli.arguments import CommandParser
from bnlab.errors import InputError
from bnlab.reports import FORMATS, Collection, Report, collect, judge_all, to_text, write_report
from bnlab.reports.pages.conclusions import conclusions_text
from bnlab.reports.pages.overview import overview
from bnlab.reports.report import check_runs, main_tables

_EPILOG = """\
Reads result.json of bnlab study and run.yaml of bnlab fit. Runs that are broken, failed or unfinished are named and
left out. Writes report.html (one page, opens offline), report.md, tables/ and figures/.

examples:
  bnlab report tb_logs/study
  bnlab report tb_logs/study --thesis --format none     the thesis's conclusions alone, nothing is written
  bnlab report tb_logs/study tb_logs/more --output docs/results --format md,csv,svg,html
"""


def run(words: Sequence[str]) -> None:
    """Run `report`, given with its own name first, as in a shell.

    Raises:
        InputError: a word or a folder cannot be used, or there are no runs.
        SystemExit: after `--help`.
    """
    given = _parser().parse_args(list(words[1:]))
    formats = _formats(given.format)
    collection = collect(given.folders)
    check_runs(collection)
    report = None
    if formats:
        output = Path(given.output) if given.output else Path(given.folders[0], "report")
        with Console(stderr=True).status("reading the runs' records") as status:  # on a terminal only
            report = write_report(collection, output, formats, given.quantity, progress=status.update)
    _print(collection, report, given.thesis)


def _parser() -> CommandParser:
    parser = CommandParser(
        "bnlab report",
        description="Tables, figures and one page on a folder of runs, beside the thesis's.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="where to look for runs, at any depth")
    add("--output", metavar="DIR", help="where the report goes (default: report in the first FOLDER)")
    add("--thesis", action="store_true", help="print the thesis's conclusions and what the runs say of each")
    formats = f"what to write, separated by commas: {', '.join(FORMATS)}; none writes nothing (default: all)"
    add("--format", default=",".join(FORMATS), metavar="LIST", help=formats)
    quantity = "quantity of layers in the heatmaps of batch norm against vanilla (default: %(default)s)"
    add("--quantity", default="grad_mean_abs", metavar="NAME", help=quantity)
    return parser


def _print(collection: Collection, report: Report | None, thesis: bool) -> None:
    """The main tables, or the conclusions; what was left out; where the files are."""
    conclusions = report.conclusions if report else judge_all(collection) if thesis else ()
    parts = []
    if thesis:
        width = min(shutil.get_terminal_size((100, 24)).columns, 120)
        parts.append(conclusions_text(collection, conclusions, width))
    else:
        tables = report.tables if report else main_tables(collection)
        parts += [to_text(table) for table in tables if table.name.endswith(("accuracy_mlp", "accuracy_cnn"))]
    counts = report.overview if report else overview(collection, conclusions)
    parts.append("".join(f"{sentence}\n" for sentence in counts.sentences))
    parts.append("".join(f"left out  {path}: {reason}\n" for path, reason in collection.left_out_lines))
    parts.append("".join(f"note      {note}\n" for note in report.notes) if report else "")
    parts.append(_places(report) if report else "")
    sys.stdout.write("\n" + "\n".join(part for part in parts if part))


def _places(report: Report) -> str:
    """One line for a page, one for a folder of files."""
    folders = Counter(path.parent for path in report.files if path.parent != report.folder)
    lines = [str(path) for path in report.files if path.parent == report.folder]
    lines += [f"{folder}{os.sep}  ({number} files)" for folder, number in folders.items()]
    return "".join(f"written   {line}\n" for line in lines)


def _formats(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names in ([], ["none"]):
        return []
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise InputError(f"--format {text}: unknown {', '.join(unknown)}; there are {', '.join(FORMATS)}, and none.")
    return names
