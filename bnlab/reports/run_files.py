"""The files that say how a run ended, as plain mappings: `result.json` of `bnlab study`, or what `bnlab fit` leaves."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1  # of result.json

_LARGEST_FILE = 1 << 20  # bytes; a real one has some kilobytes
_LONGEST_TEXT = 200  # characters


class UnreadableRunError(ValueError):
    """A folder holds no run that a report can count; the message says why."""


def read_content(folder: Path) -> Mapping[str, Any]:
    """What `result.json` holds or, without one, the same of `run.yaml` and `config.yaml`, not checked yet.

    Raises:
        UnreadableRunError: the file is missing, broken, or of another schema.
    """
    result = folder / "result.json"
    try:
        return _json(result) if result.is_file() else _of_fit(folder)
    except OSError as error:
        raise UnreadableRunError(f"cannot be read: {error.strerror or error}") from error


def clean(text: object) -> str:
    """Text from a file, fit to be shown: one line, no control or invisible characters, no lone surrogates, cut if long.

    >>> clean("mlp" + chr(27) + "[31m_relu")
    'mlp�[31m_relu'
    """
    plain = "".join("�" if unicodedata.category(letter)[0] == "C" else letter for letter in str(text)[:_LONGEST_TEXT])
    return " ".join(plain.split())


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(_text_of(path), parse_constant=lambda _: None)
    except RecursionError as error:
        raise UnreadableRunError(f"{path.name} is nested too deep") from error
    except ValueError as error:
        raise UnreadableRunError(f"{path.name} is not whole or no JSON: {clean(error)}") from error
    if not isinstance(content, dict):
        raise UnreadableRunError(f"{path.name} holds no object")
    if content.get("schema") != SCHEMA:
        raise UnreadableRunError(f"{path.name} has schema {clean(content.get('schema'))}; this bnlab reads {SCHEMA}")
    return content


def _of_fit(folder: Path) -> Mapping[str, Any]:
    """What a plain `bnlab fit` left, in the form of `result.json`."""
    record = _yaml(folder / "run.yaml")
    config = _yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    data, model = (config.get(section) for section in ("data", "model"))
    data, model = (section if isinstance(section, dict) else {} for section in (data, model))
    dataset = record.get("dataset")
    if dataset == "npz" and isinstance(data.get("root"), str):
        dataset = Path(data["root"]).name or dataset  # the user's images are called as their folder
    experiment = str(record.get("experiment"))
    return {
        **record,
        "dataset": dataset,
        "architecture": model.get("architecture", experiment.partition("_")[0]),
        "batch_size": data.get("batch_size", 64),
        "overrides": _flags(record.get("argv")),
        "test_acc": None,
    }


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(_text_of(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UnreadableRunError(
            f"{path.name} is not whole or no YAML: {clean(str(error).partition(chr(10))[0])}"
        ) from error
    if not isinstance(content, dict):
        raise UnreadableRunError(f"{path.name} holds no mapping")
    return content


def _text_of(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise UnreadableRunError(f"{path.name} is larger than any result")
    return content.decode("utf-8")


def _flags(argv: object) -> dict[str, str]:
    """`--name value` and `--name=value` among a command's words."""
    words = [word for word in argv if isinstance(word, str)] if isinstance(argv, list) else []
    flags = {}
    for place, word in enumerate(words):
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            after = words[place + 1] if place + 1 < len(words) else ""
            flags[name] = value if equals else ("true" if after.startswith("--") or not after else after)
    return flags
