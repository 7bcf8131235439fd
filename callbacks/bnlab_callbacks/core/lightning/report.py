"""What a callback says at the end of a run: on the screen line by line, as a text in TensorBoard, in a file."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bnlab_callbacks.core.files import replace_file
from bnlab_callbacks.core.lightning.names import Trainer, rank_zero_warn
from bnlab_callbacks.core.lightning.tensorboard import tensorboard_writers
from bnlab_callbacks.core.lightning.trainer import logged_step


def show(write: Callable[[str], object], lines: Iterable[str]) -> None:
    """Print lines one by one: rich's bar in Jupyter ends in a RecursionError at a print of several.

    A screen that fails is said once, and ends nothing.
    """
    try:
        for line in lines:
            write(line)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong with a screen, training goes on
        rank_zero_warn(f"the diagnosis cannot print: {type(error).__name__}: {error}")


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Put `content` into a file, whole or not at all."""
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))


def add_text(trainer: Trainer, tag: str, lines: Iterable[str]) -> None:
    """Give lines to the Trainer's TensorBoard loggers, as they are."""
    text = "\n".join(f"    {line}" for line in lines)
    for writer, prefix in tensorboard_writers(trainer):
        writer.add_text(prefix + tag, text, logged_step(trainer))
