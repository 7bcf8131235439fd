"""`bnlab diagnose RUN …`: the diagnoses of finished runs, side by side."""

import sys

from bnlab.cli.arguments import CommandParser
from bnlab.errors import InputError
from bnlab_callbacks import diagnose_text


def run(words: list[str]) -> None:
    """Print the diagnoses of the runs in some folders.

    Raises:
        InputError: a folder holds none, or one that cannot be read.
    """
    description = "What the diagnosis of finished runs said: one run in full, several side by side."
    parser = CommandParser("bnlab diagnose", description=description)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or one with runs below it")
    parser.add_argument("--details", action="store_true", help="several runs in full, too")
    arguments = parser.parse_args(words[1:])
    try:
        text = diagnose_text(arguments.runs, arguments.details)
    except ValueError as error:
        raise InputError(str(error)) from error
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")  # not every terminal can show ‖
