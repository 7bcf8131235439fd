"""The configuration of a resumed run: its own, with the flags that may be changed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from bnlab.errors import InputError

END_OF_CONFIG = "...\n"
"""YAML's own mark, which config.yaml ends with."""

_HARMLESS_SECTIONS = ("checkpoint", "heatmaps", "charts")
_HARMLESS = {
    *(f"trainer.{name}" for name in ("max_epochs", "max_steps", "max_time", "num_sanity_val_steps", "profiler")),
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy", "default_root_dir")),
    *(f"trainer.{name}" for name in ("enable_progress_bar", "enable_model_summary")),
    *(f"data.{name}" for name in ("root", "download", "num_workers")),
}
"""Flags that may differ in a resumed run: they change where and how long it runs, not what it computes."""


def check_whole(path: Path) -> None:
    """A run's config.yaml is there to its end; what is missing would take its default unnoticed.

    Raises:
        InputError: it is not.
    """
    try:
        whole = path.read_bytes().endswith(f"\n{END_OF_CONFIG}".encode())
    except OSError:
        whole = False
    if not whole:
        raise InputError(
            f"{path} is damaged: its end is missing. Remove it, and give the flags that the run was started with."
        )


def merged_config(given: Namespace, of_run: Namespace, names: Iterable[str], folder: Path) -> Namespace:
    """The run's own configuration, with the harmless ones of the given flags.

    Args:
        given: what the command's words say, defaults included.
        of_run: what the run was started with.
        names: flags that the words give explicitly, as `section.name`.
        folder: the run's, for the message.

    Raises:
        InputError: a flag says something else than the run was started with.
    """
    merged = of_run.clone()
    for name in sorted(names):
        asked, had = plain(given.get(name)), plain(of_run.get(name))
        if asked == had or (name == "seed_everything" and asked is True):
            continue
        if name == "data.batch_size" and _global_batch(of_run) is not None:
            merged[name] = given[name]  # judged below, together with the ranks
        elif name not in _HARMLESS and name.partition(".")[0] not in _HARMLESS_SECTIONS:
            raise InputError(_differs(name, asked, had, folder))
        else:
            merged[name] = given[name]
    _check_global_batch(merged, of_run, folder)
    merged["config"] = given.get("config") or of_run.get("config")  # the experiment's name comes from it
    return merged


def _check_global_batch(merged: Namespace, of_run: Namespace, folder: Path) -> None:
    """Refuse another number of images a step; on another number of ranks each has batches of another size."""
    now, had = _global_batch(merged), _global_batch(of_run)
    if now == had or now is None or had is None:
        return
    size, old_size = merged["data"]["batch_size"], of_run["data"]["batch_size"]
    ranks, old_ranks = now // size, had // old_size
    if ranks == old_ranks:
        raise InputError(_differs("data.batch_size", size, old_size, folder))
    whole = had % ranks == 0
    advice = f"Give --data.batch_size {had // ranks}." if whole else f"Choose a number of ranks that divides {had}."
    raise InputError(
        f"{ranks} rank{'s' if ranks > 1 else ''} with --data.batch_size {size} take {now} images a step, but the run "
        f"in {folder} took {had}: --data.batch_size is per rank. {advice}"
    )


def _global_batch(config: Namespace) -> int | None:
    """Images in a step's batch on all ranks together; None where only the machine knows the number of ranks."""
    trainer, devices = config["trainer"], config["trainer"]["devices"]
    if devices == "auto" and trainer["accelerator"] == "cpu":
        devices = 1
    if isinstance(devices, list):
        devices = len(devices)
    if not str(devices).isdecimal() or int(devices) == 0:
        return None
    return int(config["data"]["batch_size"]) * int(devices) * int(trainer["num_nodes"])


def _differs(name: str, asked: Any, had: Any, folder: Path) -> str:
    return (
        f"--{name} is {asked!r}, but the run in {folder} was started with {had!r}. Leave the flag out to go on with "
        "that run, or start another one: without --resume, or in another --run_folder."
    )


def plain(value: Any) -> Any:
    """Tuples, lists and namespaces as lists and dicts, which compare equal."""
    if isinstance(value, Namespace):
        return plain(value.as_dict())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
