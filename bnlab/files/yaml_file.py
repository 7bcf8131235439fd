"""A reader of YAML files that may be broken, or made to do harm."""

from pathlib import Path
from typing import Any

import yaml

_MOST_VALUES = 1_000_000


class YamlError(ValueError):
    """A file cannot be read as YAML; the message says why, in one line, without the file's name."""


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; no code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        YamlError: it cannot be read, or as `parse_yaml`.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _reason(error) from error
    return parse_yaml(content)


def parse_yaml(content: bytes) -> Any:
    """What YAML in UTF-8 stands for.

    Raises:
        YamlError: it is no UTF-8, no YAML, nested too deep, or its aliases stand for too much.
    """
    try:
        values = yaml.safe_load(content.decode("utf-8"))
    except RecursionError as error:
        raise YamlError("nested too deep") from error
    except (ValueError, yaml.YAMLError) as error:
        raise _reason(error) from error
    if _values(values, {}) > _MOST_VALUES:
        raise YamlError("its aliases stand for more than a million values")
    return values


def _reason(error: Exception) -> YamlError:
    return YamlError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _values(content: Any, known: dict[int, int]) -> int:
    """How many values there are, what stands behind an alias counted each time; known: id → of those counted."""
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        known[id(content)] = _MOST_VALUES  # for what holds itself
        parts = [*content, *content.values()] if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(content)]


def mapping_or_empty(path: Path) -> dict[Any, Any]:
    """The mapping that a YAML file holds; an empty one where there is no such file, or it cannot be read."""
    try:
        content = read_yaml(path)
    except (FileNotFoundError, YamlError):
        return {}
    return content if isinstance(content, dict) else {}
