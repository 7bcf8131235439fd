"""The folder of a run: one for all files that callbacks write in a `fit`."""

import os
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

from bnlab_callbacks.core.lightning.names import Trainer, rank_zero_info
from bnlab_callbacks.core.lightning.trainer import logged_step
from bnlab_callbacks.core.naming import loggable

VARIABLE = "BNLAB_DIR"
_HOME = __name__.partition("_")[0]  # of new folders, in the Trainer's default_root_dir

_OWN_STORES = {"MLFlowLogger"}  # whose folders are laid out by their tool alone


class RunFolder:
    """Where the callbacks of one Trainer write: the same folder for all of them in one `fit`, on rank 0.

    It is the one that a callback was given; else, with the variable `BNLAB_DIR`, a new folder in that; else that of the
    first logger that has one in a local file system, unless checkpoints are kept in it; else a new one in the Trainer's
    `default_root_dir`. A new one is called `<date-time>-<class of the LightningModule>`, is made when something is
    written for the first time, and is no other fit's: only what goes on from a checkpoint goes on in its own.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._run = ref(trainer)
        self._users: list[Any] = []
        self._used: dict[Path, None] = {}
        self._name: str | None = None  # of a new folder; None until there is one
        self._training = False

    @property
    def _trainer(self) -> Trainer:
        trainer = self._run()
        assert trainer is not None  # it is a hook of this Trainer that asks
        return trainer

    def join(self, user: Any) -> None:
        """Write in this `fit`; the first callback that joins begins it."""
        if not self._users or user in self._users:  # the latter: the fit before never ended
            self._users, self._used, self._training = [], {}, False
            if not logged_step(self._trainer):  # else the same Trainer trains on
                self._name = None
        self._users.append(user)

    def leave(self, user: Any) -> None:
        """Write no more; the last callback that leaves says where the files are. Harmless when repeated."""
        if user not in self._users:
            return
        self._users.remove(user)
        if not self._users and self._used:
            rank_zero_info(f"diagnostics of this run: {', '.join(map(str, self._used))}")
            self._used = {}

    def begin_training(self) -> None:
        """From now on checkpoints are those of a run; before, a search for a learning rate may write its own."""
        self._training = True

    def go_on(self, name: str | None) -> None:
        """Take the name that a checkpoint holds."""
        self._name = name or self._name

    def name_to_keep(self, folder: str | Path | None) -> str | None:
        """What a checkpoint holds of it: the name of a new folder, which is made if training has begun.

        None where it cannot be made: whoever writes says so, and the checkpoint is not to fail for it.

        Args:
            folder: what the callback was given: with that it needs no new one.
        """
        if folder is None and self._training and self._name is None and not _given(self._trainer):
            with suppress(OSError, ValueError):
                self._make()
        return self._name

    def find(self, folder: str | Path | None) -> Path | None:
        """The folder, there or not; None where a new one will be made.

        Args:
            folder: what the callback was given.

        Raises:
            ValueError: it would not be in a local file system.
        """
        given = _local(folder) if folder is not None else _given(self._trainer)
        if given is not None:
            return given
        root = _root(self._trainer)
        return None if self._name is None else root / self._name

    def make(self, folder: str | Path | None) -> Path:
        """The folder, to write in; a new one is made.

        Raises:
            ValueError: it would not be in a local file system.
            OSError: it cannot be made.
        """
        path = self.find(folder) or self._make()
        self._used[path] = None
        return path

    def _make(self) -> Path:
        root = _root(self._trainer)
        first = f"{time.strftime('%Y%m%d-%H%M%S')}-{loggable(type(self._trainer.lightning_module).__name__)}"
        root.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            name = first if number == 1 else f"{first}-{number}"
            try:
                (root / name).mkdir()
            except FileExistsError:
                continue
            break
        self._name = name
        return root / name


_FOLDERS: WeakKeyDictionary[Trainer, RunFolder] = WeakKeyDictionary()


def run_folder_of(trainer: Trainer) -> RunFolder:
    """The folder of the Trainer's run, which all its callbacks share."""
    if trainer not in _FOLDERS:
        _FOLDERS[trainer] = RunFolder(trainer)
    return _FOLDERS[trainer]


def _given(trainer: Trainer) -> Path | None:
    """The folder of a logger, if it is to be used."""
    if os.environ.get(VARIABLE):
        return None
    checkpoints = {os.path.abspath(place) for one in trainer.checkpoint_callbacks if (place := _dirpath(one))}
    places = [place for logger in trainer.loggers if (place := _folder_of(logger)) and "://" not in place]
    return next((Path(place) for place in places if os.path.abspath(place) not in checkpoints), None)


def _root(trainer: Trainer) -> Path:
    """What new folders are made in."""
    chosen = os.environ.get(VARIABLE)
    return _local(chosen or os.path.join(trainer.default_root_dir, _HOME)).absolute()


def _local(place: str | Path) -> Path:
    if "://" in str(place):
        raise ValueError(f"{place} is no local folder; say where with folder=… or the variable {VARIABLE}.")
    return Path(place)


def _dirpath(checkpoint: Any) -> str | None:
    return getattr(checkpoint, "dirpath", None)


def _folder_of(logger: Any) -> str | None:
    """The logger's folder of this run: its own `log_dir`, or what ModelCheckpoint takes where there is none."""
    if any(kind.__name__ in _OWN_STORES for kind in type(logger).__mro__):
        return None
    own, name, version = getattr(logger, "log_dir", None), logger.name, logger.version
    of_all_runs = own and own == logger.save_dir and (name or version)  # SwanLab's is the working directory
    if own and not of_all_runs:
        return str(own)
    if logger.save_dir is None:
        return None
    return os.path.join(logger.save_dir, str(name), version if isinstance(version, str) else f"version_{version}")
