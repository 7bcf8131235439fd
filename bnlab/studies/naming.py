"""Overrides as part of a run's identity and of its folder's name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

# how a run is watched and how fast its images come, but not what comes out
COSMETIC = frozenset(
    {"trainer.enable_progress_bar", "trainer.enable_model_summary", "data.num_workers", "data.download"}
)
_NOT_FOR_NAMES = re.compile(r"[^A-Za-z0-9_.+-]+")
_LONGEST = 80  # characters of a slug; file systems allow 255 for the whole name


def significant(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that belong to a run's identity, sorted by name."""
    return {name: value for name, value in sorted(overrides.items()) if name not in COSMETIC}


def overrides_slug(overrides: Mapping[str, Any]) -> str:
    """Overrides as part of a folder's name: `lr_0.1-max_epochs_2`; empty without any.

    Names of the sections model, data and trainer stand alone, since these have none in common. A hash is added where
    characters had to be replaced or left out, so that other values never get the same name.
    """
    parts, exact = [], True
    for name, value in significant(overrides).items():
        section, _, flag = name.partition(".")
        text = f"{flag if section in ('model', 'data', 'trainer') else name}_{flag_text(value)}"
        clean = _NOT_FOR_NAMES.sub("_", text)
        exact &= clean == text
        parts.append(clean)
    slug = "-".join(parts)
    if exact and len(slug) <= _LONGEST:
        return slug
    digest = hashlib.sha256(json.dumps(significant(overrides), default=str).encode()).hexdigest()[:8]
    return f"{slug[:_LONGEST]}-{digest}"


def flag_text(value: Any) -> str:
    """A value as a flag's text on the command line: `null`, `true`, `0.1`, JSON for lists and mappings."""
    return value if isinstance(value, str) else json.dumps(value)
