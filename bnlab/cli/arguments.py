"""The words of a command line, rearranged before they are parsed, and the parser of commands beside Lightning's."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from bnlab.errors import InputError
from bnlab.files.yaml_file import YamlError, read_yaml


class CommandParser(argparse.ArgumentParser):
    """Tells what is wrong as the rest of bnlab does."""

    def error(self, message: str) -> NoReturn:
        """Refuse the words.

        Raises:
            InputError: always.
        """
        raise InputError(f"{message}. See {self.prog} --help.")


def flags_after_configs(words: list[str]) -> list[str]:
    """Move `--config FILE` before the other flags, so that a flag beats every file, wherever it stands."""
    configs, others = _configs(words)
    return [words[0], *(word for file in configs for word in ("--config", file)), *others]


def config_of_checkpoint(words: list[str]) -> list[str]:
    """Where a checkpoint is given without a config, add the config.yaml of the run that wrote it."""
    parser = CommandParser(f"bnlab {words[0]}", add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path")
    checkpoint = parser.parse_known_args(words[1:])[0].ckpt_path
    if _configs(words)[0] or checkpoint in (None, "last"):
        return words
    config = Path(checkpoint).parent.parent / "config.yaml"
    return [words[0], "--config", str(config), *words[1:]] if config.is_file() else words


def _configs(words: list[str]) -> tuple[list[str], list[str]]:
    """The files of all `--config`, and the other words without the command."""
    parser = CommandParser(f"bnlab {words[0]}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-c", action="append", default=[])
    given, others = parser.parse_known_args(words[1:])
    return given.config, others


def given_names(words: list[str]) -> set[str]:
    """What flags or config files give, as `section.name` or `name`, as against what is left at its default."""
    names = {_name(word) for word in words if word.startswith("--")}
    for file in _config_files(words):
        for section, values in _mapping(file).items():
            names |= {f"{section}.{name}" for name in values} if isinstance(values, dict) else {section}
    return names


def check_configs(words: list[str]) -> None:
    """Every config file that the words name is a mapping.

    Raises:
        InputError: one of them is not; the message names it.
    """
    for file in _config_files(words):
        _mapping(file)


def _config_files(words: list[str]) -> Iterator[Path]:
    """The config files among the words that are there; the parser names the others."""
    return filter(Path.is_file, map(Path, _configs(words)[0]))


def _mapping(file: Path) -> dict[Any, Any]:
    try:
        content = read_yaml(file)
    except YamlError as error:
        raise InputError(f"--config {file} cannot be read as YAML: {error}.") from error
    if not isinstance(content, dict | None):
        raise InputError(f"--config {file} is no mapping of sections such as `model:`, but {type(content).__name__}.")
    return content or {}


def _name(flag: str) -> str:
    return ".".join(flag[2:].partition("=")[0].rstrip("+").split(".")[:2])
