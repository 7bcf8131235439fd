"""The words of a command line, rearranged before they are parsed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnlab.errors import InputError
from bnlab.files.yaml_file import YamlError, read_yaml

_CONFIG = ("--config", "-c")


def flags_after_configs(words: list[str]) -> list[str]:
    """Move `--config FILE` before the other flags, so that a flag beats every file, wherever it stands."""
    command, rest = words[:1], words[1:]
    configs: list[str] = []
    others: list[str] = []
    while rest:
        word = rest.pop(0)
        if word in _CONFIG and rest:
            configs += [word, rest.pop(0)]
        elif word.startswith("--config="):
            configs.append(word)
        else:
            others.append(word)
    return command + configs + others


def config_of_checkpoint(words: list[str]) -> list[str]:
    """Where a checkpoint is given without a config, add the config.yaml of the run that wrote it."""
    if any(word in _CONFIG or word.startswith("--config=") for word in words):
        return words
    checkpoint = value_of(words, "--ckpt_path")
    if checkpoint is None or checkpoint == "last":
        return words
    config = Path(checkpoint).parent.parent / "config.yaml"
    return [words[0], "--config", str(config), *words[1:]] if config.is_file() else words


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
    for position, word in enumerate(words):
        file = words[position + 1] if word in _CONFIG and position + 1 < len(words) else word.partition("--config=")[2]
        if file and Path(file).is_file():
            yield Path(file)


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


def value_of(words: list[str], flag: str) -> str | None:
    """The value of a flag, given as `--flag value` or `--flag=value`; None without it."""
    for position, word in enumerate(words):
        if word == flag and position + 1 < len(words):
            return words[position + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None
