"""`bnlab fit --resume` and `--run_folder`: which run is meant, where it stands, and whether the flags fit it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from bnlab.cli.run_folder import RunLock, versions_newest_first
from bnlab.errors import InputError
from bnlab.training.checkpoint_file import GoodCheckpoint, find_checkpoint
from bnlab.training.run_record import describe
from bnlab.yaml_file import mapping_or_empty, read_yaml

ENDED = ("finished", "early", "diverged")

END_OF_CONFIG = "...\n"
"""YAML's own mark, which config.yaml ends with."""

_HARMLESS_SECTIONS = ("checkpoint", "heatmaps", "charts")
_HARMLESS = {
    *(f"trainer.{name}" for name in ("max_epochs", "max_steps", "max_time", "num_sanity_val_steps", "profiler")),
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy", "default_root_dir")),
    *(f"trainer.{name}" for name in ("enable_progress_bar", "enable_model_summary")),
    *(f"data.{name}" for name in ("root", "download", "num_workers")),
}
"""Flags that a run may go on with changed: they change where and how long it runs, not what it computes."""


def add_flags(parser: ArgumentParser) -> None:
    """Add `--run_folder` and `--resume`."""
    parser.add_argument(
        "--run_folder",
        type=str | None,
        default=None,
        help="The run's folder itself, instead of the next free one in tb_logs/.",
    )
    parser.add_argument(
        "--resume",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="Go on from the last checkpoint of the run in --run_folder, or of the newest one of this experiment and "
        "variant that has not ended; begin where there is none. Also: --ckpt_path last.",
    )


@dataclass
class Plan:
    """What `bnlab fit` is to do.

    Args:
        folder: where the run lands; None for the next free one.
        record: for a run that is there already, its run.yaml, empty where it has none; else None.
        checkpoint: what the run goes on from; None to begin.
        damaged: checkpoints to be set aside.
        ended: the run is over, and nothing is left to do.
        lock: keeps other processes off a run that goes on, from the moment on that its state is read.
    """

    folder: Path | None = None
    record: dict[str, Any] | None = None
    checkpoint: GoodCheckpoint | None = None
    damaged: list[Path] = field(default_factory=list)
    ended: bool = False
    lock: RunLock | None = None


def check_free(folder: Path) -> None:
    """A run may begin in a folder.

    Raises:
        InputError: the folder holds a run.
    """
    if holds_run(folder):
        raise InputError(
            f"--run_folder {folder} holds a run already. Add --resume to go on with it, or give another folder."
        )


def plan_resume(folder: Path, max_epochs: int | None, first_process: bool = True) -> Plan:
    """What `--resume` is to do in a folder, which may not exist yet.

    Args:
        folder: the run's.
        max_epochs: epochs that are asked for explicitly; None where they are not.
        first_process: False on ranks other than the first, which has locked the run.

    Raises:
        InputError: another process works on the run, or it is beyond `max_epochs`.
    """
    if not holds_run(folder):
        return Plan(folder)
    lock = RunLock(folder) if first_process else None
    try:
        plan = _plan_of_run(folder, max_epochs)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    plan.lock = lock
    return plan


def _plan_of_run(folder: Path, max_epochs: int | None) -> Plan:
    record = read_record(folder)
    if has_ended(record, max_epochs):
        return Plan(folder, record, ended=True)
    checkpoint, damaged = find_checkpoint(_checkpoints_of(folder), _say)
    if checkpoint is not None and max_epochs is not None and 0 <= max_epochs < checkpoint.epoch:
        raise InputError(
            f"--trainer.max_epochs is {max_epochs}, but the run in {folder} has {checkpoint.epoch} epochs already. "
            "Give at least as many, or leave the flag out."
        )
    return Plan(folder, record, checkpoint, damaged)


def _checkpoints_of(folder: Path) -> Path:
    """Where a run keeps its checkpoints; whether its config.yaml is whole, is checked later."""
    section = mapping_or_empty(folder / "config.yaml").get("checkpoint")
    place = section.get("dirpath") if isinstance(section, dict) else None
    return Path(place) if place and isinstance(place, str) else folder / "checkpoints"


def find_run(variant: Path, max_epochs: int | None, first_process: bool = True) -> Path | None:
    """The newest `version_<k>` in a folder that has not ended and that no other process works on.

    The first process of a run has it locked already when its other ranks look for it.
    """
    for folder in versions_newest_first(variant):
        taken = first_process and RunLock.is_held(folder)
        if holds_run(folder) and not taken and not has_ended(read_record(folder), max_epochs):
            return folder
    return None


def holds_run(folder: Path) -> bool:
    """Whether a run was started in a folder."""
    return any((folder / name).is_file() for name in ("config.yaml", "run.yaml")) or any(
        folder.glob("checkpoints/*.ckpt")
    )


def read_record(folder: Path) -> dict[str, Any]:
    """A run's run.yaml; empty where there is none, as after a kill in the first moment, or where it is damaged."""
    path = folder / "run.yaml"
    try:
        content = read_yaml(path)
        describe(content["outcome"])
        int(content["outcome"].get("epochs", 0))
        list(content.get("resumed", []))
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _say(f"{path} is no record of a run ({type(error).__name__}); the run's history is left out.")
        return {}
    return dict(content)


def has_ended(record: dict[str, Any], max_epochs: int | None) -> bool:
    """Whether a run is over: a finished one is not where more epochs are asked for than it had."""
    outcome = record.get("outcome", {})
    if outcome.get("status") == "finished" and max_epochs is not None:
        return 0 <= max_epochs <= int(outcome.get("epochs", 0))
    return outcome.get("status") in ENDED


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
    """On another number of ranks each has batches of another size, so that an optimizer step sees as many images.

    Raises:
        InputError: an optimizer step would see another number of images than the run's steps so far.
    """
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


def announce(plan: Plan, variant: Path, say: Callable[[str], None]) -> None:
    """Tell a person how the run goes on; `variant` is where one was looked for."""
    if plan.folder is None:
        say(f"no run in {variant} is left to go on with: a new one begins.")
    elif plan.ended:
        assert plan.record is not None
        say(f"the run in {plan.folder} has ended, {describe(plan.record['outcome'])}: nothing is left to do.")
    elif plan.checkpoint is not None:
        found = plan.checkpoint
        say(f"the run in {plan.folder} goes on from {found.path.name}: epoch {found.epoch}, step {found.step}.")
    elif plan.record is not None:
        say(f"the run in {plan.folder} left no checkpoint: it begins again.")


def _say(message: str) -> None:
    sys.stderr.write(f"bnlab: {message}\n")
