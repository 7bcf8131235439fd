"""The event files and the table of records of a run, and their return to what a checkpoint knows of them."""

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from bnlab.files.durable_files import sync
from bnlab_callbacks import RecordFile

_EVENTS = "events.out.tfevents.*"
_TABLE = "records.csv"


def flush_to_disk(trainer: Trainer, folder: Path) -> dict[str, int]:
    """Bring to the disk all that was published so far.

    Args:
        trainer: between two batches.
        folder: the run's folder.

    Returns:
        sizes in bytes of the event files and the table of records, by their paths within the folder, or else in full.
    """
    folders = [folder]
    for callback in trainer.callbacks:  # type: ignore[attr-defined] # set by a connector
        if isinstance(callback, RecordFile) and callback.active:
            callback.write_out()
            folders.append(callback.path.parent)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
            folders.append(Path(logger.experiment.log_dir))
    sizes = {}
    for path in _appended_files(folders):
        sync(path)
        inside = path.absolute().is_relative_to(folder.absolute())
        name = path.absolute().relative_to(folder.absolute()) if inside else path.absolute()
        sizes[str(name)] = path.stat().st_size
    return sizes


def cut_back(folder: Path, sizes: Mapping[str, int]) -> list[str]:
    """Take a run's event files and table of records back to what they were when `flush_to_disk` gave these sizes.

    What came later is removed, so that the resumed run writes it once only. Outside the run's folder,
    files that are not known stay: they may be other runs'.

    Returns:
        complaints: files that are shorter than they were, which only a broken disk or a person can have made so.
    """
    known = {folder / name: size for name, size in sizes.items()}  # names outside the folder are absolute
    for place in {folder, *(path.parent for path in known if path.name == _TABLE)}:
        RecordFile.table_of(place)
    for path in _appended_files([folder]):
        if path not in known:
            path.unlink()
    complaints = [each for path, size in known.items() if (each := _shorten(path, size))]
    _remove_unfinished(folder)
    sync(folder)
    return complaints


def _shorten(path: Path, size: int) -> str | None:
    """Take a file back to `size` bytes; what is wrong if it has fewer."""
    if not path.is_file():
        return f"{path} is missing, and its records with it."
    if path.stat().st_size < size:
        return f"{path} has lost {size - path.stat().st_size} bytes; its last records are missing."
    os.truncate(path, size)
    sync(path)
    return None


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
    for name in ("dead_units.csv", "diagnosis.json", "hparams.yaml"):
        (folder / name).unlink(missing_ok=True)


def _appended_files(folders: Iterable[Path]) -> list[Path]:
    unique = {folder.absolute(): folder for folder in folders}
    found = [path for folder in unique.values() for path in (*folder.glob(_EVENTS), *folder.glob(_TABLE))]
    return sorted(path for path in found if path.is_file())
