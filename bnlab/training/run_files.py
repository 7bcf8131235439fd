"""What a run has written besides its checkpoints, how much of it a checkpoint knows, and the way back to there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning.pytorch import Trainer

from bnlab.training.checkpoint_file import sync
from bnlab_callbacks import RecordFile
from bnlab_callbacks.record_file import table_of
from bnlab_callbacks.run_output import publish_kept, tensorboard_writers

_EVENTS = "events.out.tfevents.*"
_TABLE = "records.csv"


def settle(trainer: Trainer, folder: Path) -> dict[str, int]:
    """Bring to the disk all that was recorded so far.

    Args:
        trainer: between two batches.
        folder: the run's folder.

    Returns:
        sizes in bytes of the event files and the table of records, by their paths within the folder, or else in full.
    """
    publish_kept(trainer)
    for callback in trainer.callbacks:  # type: ignore[attr-defined] # set by a connector
        if isinstance(callback, RecordFile):
            callback.write_out()
    folders = [folder]
    for writer, _ in tensorboard_writers(trainer):
        writer.flush()
        folders.append(Path(writer.log_dir))
    sizes = {}
    for path in _appended_files(folders):
        sync(path)
        sizes[_name(path, folder)] = path.stat().st_size
    return sizes


def cut_back(folder: Path, sizes: Mapping[str, int]) -> list[str]:
    """Take a run's event files and table of records back to what they were when `settle` gave these sizes.

    What came later is removed, so that the run that goes on from there writes it once only.

    Returns:
        complaints: files that are shorter than they were, which only a broken disk or a person can have made so.
    """
    table_of(folder)
    known = {folder / name: size for name, size in sizes.items()}  # names outside the folder are absolute
    complaints = []
    for path in _appended_files({folder, *(path.parent for path in known)}):
        size = known.pop(path, 0)
        if size == 0:
            path.unlink()
            continue
        if path.stat().st_size < size:
            complaints.append(f"{path} has lost {size - path.stat().st_size} bytes; its last records are missing.")
        else:
            os.truncate(path, size)
        sync(path)
    complaints += [f"{path} is missing, and its records with it." for path, size in known.items() if size]
    _remove_unfinished(folder)
    sync(folder)
    return complaints


def _remove_unfinished(folder: Path) -> None:
    """Remove the files that a killed process was about to write: `.<name>.<process>`."""
    for place in (folder, folder / "checkpoints", folder / "heatmaps"):
        for path in place.glob(".*"):
            if re.fullmatch(r"\..+\.\d+", path.name) and path.is_file():
                path.unlink()


def clear(folder: Path) -> None:
    """Remove what a run without a checkpoint has recorded: the next one begins anew."""
    cut_back(folder, {})
    shutil.rmtree(folder / "heatmaps", ignore_errors=True)
    for name in ("dead_units.csv", "hparams.yaml"):
        (folder / name).unlink(missing_ok=True)


def _appended_files(folders: Iterable[Path]) -> list[Path]:
    unique = {folder.absolute(): folder for folder in folders}
    found = [path for folder in unique.values() for path in (*folder.glob(_EVENTS), *folder.glob(_TABLE))]
    return sorted(path for path in found if path.is_file())


def _name(path: Path, folder: Path) -> str:
    try:
        return str(path.absolute().relative_to(folder.absolute()))
    except ValueError:
        return str(path.absolute())
