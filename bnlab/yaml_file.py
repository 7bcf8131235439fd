"""Reading YAML that may be broken, or meant to harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class YamlError(ValueError):
    """A file cannot be read as YAML; the message says why, in one line, without the file's name."""


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; no code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        YamlError: it cannot be read, is no UTF-8, no YAML, or nested too deep.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except RecursionError as error:
        raise YamlError("nested too deep") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise YamlError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def mapping_or_empty(path: Path) -> dict[Any, Any]:
    """The mapping that a YAML file holds; an empty one where there is no such file, or it cannot be read."""
    try:
        content = read_yaml(path)
    except (FileNotFoundError, YamlError):
        return {}
    return content if isinstance(content, dict) else {}
