"""The entry point `bnlab`: answers `--help` and `--version` at once, and hands everything else to LightningCLI."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from bnlab import __version__
from bnlab.cli.launched_ranks import end_with_launcher
from bnlab.errors import InputError

COMMANDS = {  # and the modules that run them
    **dict.fromkeys(("fit", "validate", "test", "predict"), "bnlab.cli.commands"),
    **{name: f"bnlab.cli.{name}" for name in ("preflight", "study", "report", "diagnose")},
}


def main(args: Sequence[str] | None = None) -> None:
    """Run one command, given as in a shell, without the program's name; None takes the process's own arguments.

    Raises:
        SystemExit: with status 2 after a message on standard error, where the input cannot be used.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(Path(__file__).with_name("help.txt").read_text(encoding="utf-8"))
    elif words[0] == "--version":
        sys.stdout.write(f"bnlab {__version__}\n")
    elif words[0] not in COMMANDS:
        _fail(f"unknown command {words[0]!r}; there are {', '.join(COMMANDS)}. See bnlab --help.")
    else:
        with _environment_kept():
            end_with_launcher()
            _run(words)


def _run(words: list[str]) -> None:
    from argparse import ArgumentError

    from lightning.fabric.utilities.exceptions import MisconfigurationException

    module = import_module(COMMANDS[words[0]])  # only now, since most need seconds to load
    try:
        module.run(words)
    except ArgumentError as error:
        _fail(f"{_plain(str(error))} See bnlab {words[0]} --help.")
    except MisconfigurationException as error:
        _fail(str(error))
    except Exception as error:
        cause = _input_error(error)
        if cause is None:
            raise
        _fail(str(cause))


def _input_error(error: BaseException | None) -> InputError | None:
    """The first InputError that led to `error`: jsonargparse wraps what is raised for linked arguments."""
    found = None
    while error is not None:
        if isinstance(error, InputError):
            found = error
        error = error.__cause__ or error.__context__
    return found


def _plain(message: str) -> str:
    """A parser's message as a sentence, with the names of types as Python writes them."""
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message)
    message = re.sub(r"a typing\.Literal\[([^\]]*)\]", r"one of \1", message)
    message = message.replace("a NoneType", "null").strip()
    return message if message.endswith(".") else f"{message}."


def _fail(message: str) -> None:
    sys.stderr.write(f"bnlab: error: {message}\n")
    raise SystemExit(2)


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what seed_everything and launchers leave in the environment, for callers within a Python process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
