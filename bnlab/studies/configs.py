"""Finding the config files that a grid names: by path, by glob, or by an experiment's name."""

from __future__ import annotations

from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path

from bnlab.errors import InputError


def shipped_folder() -> Path | None:
    """The folder of the thesis's configs: the checkout's, or the one within an installed bnlab."""
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "mlp_relu.yaml").is_file():
            return folder
    return None


def find_configs(given: Iterable[str]) -> tuple[Path, ...]:
    """The files that paths, globs and names such as `mlp_relu` stand for; what is in the current folder goes first.

    Raises:
        InputError: one of them stands for no file; the message says where it was looked for.
    """
    return tuple(path for text in given for path in find_config(text))


def find_config(text: str) -> list[Path]:
    """As `find_configs`, for one of them; a glob's files are sorted."""
    patterns = _patterns(text)
    for pattern in patterns:
        found = [Path(path) for path in sorted(glob(str(pattern)))] if has_magic(text) else [pattern]
        found = [path for path in found if path.is_file()]
        if found:
            return found
    looked = ", ".join(str(pattern) for pattern in patterns)
    raise InputError(
        f"--configs {text}: no such config; looked for {looked}. Give a file, a glob in quotation marks, or the name "
        "of an experiment, such as mlp_relu."
    )


def _patterns(text: str) -> list[Path]:
    """Where a text may lie, the first place first. Only bare names and those in `configs/` are looked for further."""
    given = Path(text)
    patterns = [given]
    if given.parent in (Path(), Path("configs")):
        name = given.name if given.suffix == ".yaml" else f"{given.name}.yaml"
        patterns.append(Path("configs") / name)
        shipped = shipped_folder()
        if shipped is not None:
            patterns.append(shipped / name)
    return list(dict.fromkeys(patterns))
