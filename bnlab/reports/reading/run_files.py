"""The files of a run that has ended, as plain mappings: `result.json` of `bnlab study`, `run.yaml` of `bnlab fit`."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnlab.files.yaml_file import YamlError, parse_yaml
from bnlab.reports.thesis.experiments import BATCH_SIZE, departures, thesis_experiment

SCHEMA = 1  # of result.json

_LARGEST_FILE = 1 << 20  # bytes; a real one has some kilobytes
_LONGEST_TEXT = 200  # characters


class UnreadableRunError(ValueError):
    """A folder holds no run that a report can count; the message says why."""


def read_content(folder: Path) -> Mapping[str, Any]:
    """The content of `result.json` or, without one, the same from `run.yaml`; not checked yet.

    Settings of `config.yaml` that differ from the thesis's (`departures`) are added to its `overrides`.

    Raises:
        UnreadableRunError: the file is missing, broken, or of another schema.
    """
    result = folder / "result.json"
    try:
        if result.is_file():
            content, config = _json(result), _config(folder)
        else:
            config = _config(folder)
            content = _from_fit(_yaml(folder / "run.yaml"), config)
    except OSError as error:
        raise UnreadableRunError(f"cannot be read: {error.strerror or error}") from error
    overrides = content.get("overrides")
    if overrides is not None and not isinstance(overrides, dict):
        return content
    experiment = thesis_experiment(str(content.get("experiment")), str(content.get("architecture")))
    return {**content, "overrides": departures(config, experiment) | (overrides or {})}


def clean(text: object) -> str:
    """Text from a file, fit to be shown: one line, no control or invisible characters, no lone surrogates, cut if long.

    >>> clean("mlp" + chr(27) + "[31m_relu")
    'mlp�[31m_relu'
    """
    plain = "".join("�" if unicodedata.category(letter)[0] == "C" else letter for letter in str(text)[:_LONGEST_TEXT])
    return " ".join(plain.split())


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(_content_of(path).decode("utf-8"), parse_constant=lambda _: None)
    except RecursionError as error:
        raise UnreadableRunError(f"{path.name} is nested too deep") from error
    except ValueError as error:
        raise UnreadableRunError(f"{path.name} is not whole or no JSON: {clean(error)}") from error
    if not isinstance(content, dict):
        raise UnreadableRunError(f"{path.name} holds no object")
    if content.get("schema") != SCHEMA:
        raise UnreadableRunError(f"{path.name} has schema {clean(content.get('schema'))}; this bnlab reads {SCHEMA}")
    return content


def _from_fit(record: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a plain `bnlab fit` in the form of `result.json`."""
    data, model = (config.get(section) for section in ("data", "model"))
    data, model = (section if isinstance(section, dict) else {} for section in (data, model))
    dataset = record.get("dataset")
    if dataset == "npz" and isinstance(data.get("root"), str):
        dataset = Path(data["root"]).name or dataset  # the user's own images are named after their folder
    return {
        **record,
        "dataset": dataset,
        "architecture": model.get("architecture", str(record.get("experiment")).partition("_")[0]),
        "batch_size": data.get("batch_size", BATCH_SIZE),
        "overrides": {},
        "test_acc": None,
    }


def _config(folder: Path) -> dict[str, Any]:
    """The resolved flags by section; empty without such a file."""
    path = folder / "config.yaml"
    return _yaml(path) if path.is_file() else {}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(_content_of(path))
    except YamlError as error:
        raise UnreadableRunError(f"{path.name} is not whole or no YAML: {clean(str(error))}") from error
    if not isinstance(content, dict):
        raise UnreadableRunError(f"{path.name} holds no mapping")
    return content


def _content_of(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise UnreadableRunError(f"{path.name} is larger than any result")
    return content
