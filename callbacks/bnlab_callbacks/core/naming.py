"""Names of layers and tags: `<quantity>/<NN>_<layer>`, NN the order of execution."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

_LAYER_TAG = re.compile(r"([^/]+)/(\d{2,}_.+)", re.DOTALL)
_OLD_REPEAT = re.compile(r"#(\d+)$")
_NOT_LOGGABLE = re.compile(r"[^A-Za-z0-9_\-./]")
# what wrappers put into a module's path: torch.compile, FSDP, activation checkpointing
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)")


def clean_name(name: str) -> str:
    """The layer's own name: `_orig_mod.net.fc1` → `net.fc1`."""
    return _WRAPPERS.sub("", name).lstrip(".")


def numbered_name(place: int, layer: str, width: int = 2) -> str:
    """`<NN>_<layer>`, in characters that every logger takes: what is no letter, digit or `_ - . /` becomes `_`."""
    return f"{place:0{width}d}_{loggable(layer)}"


def loggable(layer: str) -> str:
    """A layer's name as it is in tags."""
    return _NOT_LOGGABLE.sub("_", layer)


def number(layers: Iterable[str]) -> dict[str, str]:
    """Map layers, given in execution order, to their `<NN>_<layer>`, zero-padded to at least two digits."""
    names = list(layers)
    width = max(2, len(str(len(names) - 1)))
    return {name: numbered_name(position, name, width) for position, name in enumerate(names)}


def continue_numbers(numbered: Mapping[str, str], layers: Sequence[str]) -> dict[str, str]:
    """The same with more layers, given in order; those that are not there yet get the next free numbers."""
    free = 1 + max((place_of(name)[0] for name in numbered.values()), default=-1)
    new = [layer for layer in layers if layer not in numbered]
    return dict(numbered) | {layer: numbered_name(place, layer) for place, layer in enumerate(new, start=free)}


def renamed(name: str) -> str:
    """A call's name or tag of an earlier version by today's: `relu#2` → `relu.2`."""
    return _OLD_REPEAT.sub(r".\1", name) if "#" in name else name


def with_new_names(state: Any) -> Any:
    """A state of an earlier version with all names by today's; other values are as they were."""
    if isinstance(state, str):
        return renamed(state)
    if isinstance(state, dict):
        return {with_new_names(key): with_new_names(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(map(with_new_names, state))
    return state


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
