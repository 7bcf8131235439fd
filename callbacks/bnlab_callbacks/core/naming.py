"""Names of layers and tags: `<quantity>/<NN>_<layer>`, NN the order of execution."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

_LAYER_TAG = re.compile(r"([^/]+)/(\d{2,}_.+)", re.DOTALL)
_REPEAT = re.compile(r"#\d+$")
# what wrappers put into a module's path: torch.compile, FSDP, activation checkpointing
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)")


def clean_name(name: str) -> str:
    """The layer's own name: `_orig_mod.net.fc1` → `net.fc1`."""
    return _WRAPPERS.sub("", name).lstrip(".")


def number(layers: Iterable[str]) -> dict[str, str]:
    """Map layers, given in execution order, to their `<NN>_<layer>`, zero-padded to at least two digits."""
    names = list(layers)
    width = max(2, len(str(len(names) - 1)))
    return {name: f"{position:0{width}d}_{name}" for position, name in enumerate(names)}


def continue_numbers(numbered: Mapping[str, str], layers: Sequence[str]) -> dict[str, str]:
    """The same with more layers, given in order; those that are not there yet get the next free numbers."""
    free = 1 + max((place_of(name)[0] for name in numbered.values()), default=-1)
    new = [layer for layer in layers if layer not in numbered]
    return dict(numbered) | {layer: f"{place:02d}_{layer}" for place, layer in enumerate(new, start=free)}


def name_calls(layers: Iterable[str]) -> list[str]:
    """Names of one batch's calls, given by layer in order: the layer's own for its first call, then `<layer>#2`, …."""
    repeats: Counter[str] = Counter()
    names = []
    for layer in layers:
        repeats[layer] += 1
        names.append(layer if repeats[layer] == 1 else f"{layer}#{repeats[layer]}")
    return names


def layer_of(call: str) -> str:
    """The layer of a name that `name_calls` gave."""
    return _REPEAT.sub("", call)


@lru_cache(maxsize=1 << 14)
def split_tag(tag: str) -> tuple[str, str]:
    """Quantity and layer: `grad_rms/00_fc1` → (`grad_rms`, `00_fc1`); `time/epoch_s` → (`time/epoch_s`, ``)."""
    parts = _LAYER_TAG.fullmatch(tag)
    return (parts[1], parts[2]) if parts else (tag, "")


def place_of(layer: str) -> tuple[int, str]:
    """What `<NN>_<layer>` are sorted by: the number, since more than a hundred layers have more digits."""
    digits = layer.partition("_")[0]
    return (int(digits) if digits.isdecimal() else 0, layer)


def layer_filter(pattern: str | None) -> re.Pattern[str]:
    """Compile the `layers` argument of a callback; None lets every layer through.

    Raises:
        ValueError: `pattern` is no regular expression.
    """
    try:
        return re.compile(pattern or "")
    except re.error as error:
        raise ValueError(
            f"layers={pattern!r} is no regular expression ({error}); try for example 'conv|fc1'."
        ) from None
