"""The commands `python -m bnlab_callbacks diagnose FOLDER…` and `show FOLDER`, which read what runs have written."""

import argparse
import sys
from collections.abc import Sequence

from bnlab_callbacks.pages.run_table import diagnose_text, show_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, given as words; None takes those of the process. Returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        text = diagnose_text(given.folders, given.details) if given.command == "diagnose" else show_text(given.folder)
    except ValueError as error:
        sys.stderr.write(_writable(f"{_parser().prog}: error: {error}\n", sys.stderr.encoding))
        return 2
    sys.stdout.write(_writable(text + "\n", sys.stdout.encoding))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bnlab_callbacks", description="Read what the callbacks have written about runs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    diagnose = commands.add_parser(
        "diagnose", help="diagnoses of finished runs (diagnosis.json): one run in full, several side by side"
    )
    diagnose.add_argument("folders", nargs="+", metavar="FOLDER", help="a run's folder, or one with runs below it")
    diagnose.add_argument("--details", action="store_true", help="several runs in full, too")
    show = commands.add_parser(
        "show", help="one run in one screen: its diagnosis, first and last recorded values, pictures"
    )
    show.add_argument("folder", metavar="FOLDER", help="a run's folder")
    return parser


def _writable(text: str, encoding: str | None) -> str:
    """The text with a question mark for each character that a terminal of that encoding cannot show."""
    return text.encode(encoding or "utf-8", "replace").decode(encoding or "utf-8")


if __name__ == "__main__":
    sys.exit(main())
