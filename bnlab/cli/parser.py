"""The parser of the commands that are not Lightning's."""

from __future__ import annotations

import argparse
from typing import NoReturn

from bnlab.errors import InputError


class CommandParser(argparse.ArgumentParser):
    """Tells what is wrong as the rest of bnlab does."""

    def error(self, message: str) -> NoReturn:
        """Refuse the words.

        Raises:
            InputError: always.
        """
        raise InputError(f"{message}. See {self.prog} --help.")
