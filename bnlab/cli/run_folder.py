"""The folder of a run: `<root>/<experiment>/<dataset>-<vanilla|bn>-seed<seed>/version_<k>` for a new one.

For `bnlab fit --resume` and `--run_folder`, the run that they mean and where it stands.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from bnlab.errors import InputError
from bnlab.files.run_lock import RunLock, is_locked
from bnlab.files.yaml_file import mapping_or_empty, read_yaml
from bnlab.resuming.checkpoint_file import GoodCheckpoint, find_checkpoint
from bnlab.training.run_record import describe

_VERSION = re.compile(r"version_(\d+)")
ENDED = ("finished", "early", "diverged")


def add_flags(parser: ArgumentParser) -> None:
    """Add `--run_folder` and `--resume`."""
    place = "The run's folder itself, instead of the next free one in tb_logs/."
    parser.add_argument("--run_folder", type=str | None, default=None, help=place)
    resume = (
        "Go on from the last checkpoint of the run in --run_folder, or of the newest one of this experiment and "
        "variant that has not ended; begin where there is none. Also: --ckpt_path last."
    )
    parser.add_argument("--resume", type=bool, nargs="?", const=True, default=False, help=resume)


@dataclass
class Plan:
    """What `bnlab fit` is to do."""

    folder: Path | None = None  # where the run lands; None for the next free one
    record: dict[str, Any] | None = None  # run.yaml of a run that is there already, empty where it has none
    checkpoint: GoodCheckpoint | None = None  # what the run resumes from; None to begin
    damaged: list[Path] = field(default_factory=list)  # checkpoints to be set aside
    ended: bool = False  # the run is over, and nothing is left to do
    lock: RunLock | None = None  # keeps other processes off a resumed run, from the moment that its state is read


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
    lock = lock_run(folder) if first_process else None
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
        taken = first_process and is_locked(folder)
        if holds_run(folder) and not taken and not has_ended(read_record(folder), max_epochs):
            return folder
    return None


def make_folder(folder: Path) -> Path:
    """Make a folder that was asked for by name, if it is not there, and return it.

    Raises:
        InputError: it cannot be made or written to.
    """
    with _writing(f"--run_folder {folder}", "give another"):
        _make_writable(folder)
    return folder


@contextmanager
def _writing(place: str, way_out: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{place} cannot be written ({error.strerror or error}); {way_out}.") from error


def _make_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "no permission to write", str(folder))


def versions_newest_first(variant: Path) -> list[Path]:
    """The `version_<k>` in a folder, the highest number first."""
    found = [(int(match[1]), path) for path in variant.glob("version_*") if (match := _VERSION.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def lock_run(folder: Path) -> RunLock:
    """Keep other processes off a run's folder for as long as this one lives, or until the lock is released.

    Raises:
        InputError: another process works on the run, or the folder cannot be written.
    """
    with _writing(f"--run_folder {folder}", "give another"):
        lock = RunLock(folder)
        if lock.acquire():
            return lock
    raise InputError(f"another process works on the run in {folder}: wait for it or stop it, or start a run elsewhere.")


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


def announce(plan: Plan, variant: Path, say: Callable[[str], None]) -> None:
    """Tell a person where the run resumes; `variant` is the folder where one was looked for."""
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


def experiment_name(configs: Sequence[Path], fallback: str) -> str:
    """The config files' stems, joined by `+`; for a run's own config.yaml the name that its run had."""
    stems = [_stem(config) for config in configs]
    return "+".join(dict.fromkeys(stems)) or fallback


def _stem(config: Path) -> str:
    record = config.parent / "run.yaml"
    if config.name == "config.yaml" and record.is_file():
        name = mapping_or_empty(record).get("experiment")
        if isinstance(name, str) and name and Path(name).name == name:  # it becomes a folder's name
            return name
    return config.stem


def variant_name(dataset: str, batch_norm: bool, seed: int | bool | None) -> str:
    """`mnist-bn-seed0`; without the seed for a run that is not seeded."""
    norm = "bn" if batch_norm else "vanilla"
    return f"{dataset}-{norm}" + ("" if seed is None or seed is False else f"-seed{int(seed)}")


def make_next_version(parent: Path) -> Path:
    """Make the next free `version_<k>` in a variant's folder and return it; two processes at once get two folders.

    Raises:
        InputError: the folder cannot be made.
    """
    with _writing(f"the run's folder {parent}{os.sep}", "give another one with --trainer.default_root_dir"):
        _make_writable(parent)
        for number in count():
            with suppress(FileExistsError):
                (parent / f"version_{number}").mkdir()
                break
    return parent / f"version_{number}"
