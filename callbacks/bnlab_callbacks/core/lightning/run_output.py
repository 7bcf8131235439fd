"""What the callbacks share that turn a run's records into files and events."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from bnlab_callbacks.core.lightning.monitor import Monitor
from bnlab_callbacks.core.lightning.names import Callback, LightningModule, Trainer, logged_step, rank_zero_warn
from bnlab_callbacks.core.lightning.records import Record, RecordListener

P = ParamSpec("P")


class _GivesUp(Protocol):
    """A callback that can be off."""

    active: bool

    def give_up(self, reason: str) -> None: ...


R = TypeVar("R", bound=_GivesUp)


def or_give_up(method: Callable[Concatenate[R, P], None]) -> Callable[Concatenate[R, P], None]:
    """Make a method a no-op while its callback is off, and turn an error in it into one warning."""

    @wraps(method)
    def guarded(self: R, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.active:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            self.give_up(f"{type(error).__name__}: {error}")

    return cast(Callable[Concatenate[R, P], None], guarded)


class RunOutput(RecordListener):
    """A callback that writes what was recorded in a `fit`: on rank 0 only, and not under `fast_dev_run`.

    An epoch is written when the next one starts or training ends: then every callback has published its epoch's values,
    and Lightning has computed its own, whatever the order of the callbacks.

    Args:
        enabled: False switches the callback off.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.active = False
        self._fitting = False
        self._ended: tuple[int, int] | None = None  # step and epoch of an epoch that is yet to be written

    # what a callback of one kind adds

    def begin(self, trainer: Trainer) -> None:
        """Prepare for a `fit`; nothing is to be written yet."""

    def take(self, trainer: Trainer, record: Record) -> None:
        """Take in a record."""

    def epoch_ended(self, trainer: Trainer, step: int, epoch: int) -> None:
        """Write what an epoch left, at its last step. Called on all ranks."""

    def finish(self, trainer: Trainer) -> None:
        """Write what is left, at the end of a `fit` or after an exception in it."""

    # one fit

    def give_up(self, reason: str) -> None:
        """Say once why nothing more is written, and let training go on."""
        self.active = False
        rank_zero_warn(f"{type(self).__name__} is off for the rest of this run: {reason}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin, before anything is recorded."""
        if stage == "fit":
            self._ended = None
            self._fitting = self.enabled and not trainer.fast_dev_run  # type: ignore[attr-defined] # set by a connector
            self.active = self._fitting and trainer.is_global_zero
            self._begin(trainer)

    @or_give_up
    def _begin(self, trainer: Trainer) -> None:
        self.begin(trainer)

    @or_give_up
    def on_record(self, trainer: Trainer, record: Record) -> None:
        """Take in a record."""
        self.take(trainer, record)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the epoch ended."""
        self._ended = (logged_step(trainer) - 1, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch before."""
        self._close_epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last epoch."""
        self._close_epoch(trainer)

    def _close_epoch(self, trainer: Trainer) -> None:
        ended, self._ended = self._ended, None
        if self._fitting and ended:
            self.epoch_ended(trainer, *ended)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what led up to the exception: Lightning calls no other hook then."""
        publish_kept(trainer)
        self._close_alone(trainer)
        self._finish(trainer)

    @or_give_up
    def _close_alone(self, trainer: Trainer) -> None:
        if trainer.world_size == 1:  # other ranks may be anywhere
            self._close_epoch(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what is left."""
        self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        self._finish_guarded(trainer)
        self.active = self._fitting = False

    @or_give_up
    def _finish_guarded(self, trainer: Trainer) -> None:
        self.finish(trainer)


def publish_kept(trainer: Trainer) -> None:
    """Let every monitor publish the records that it still keeps, as it does itself at its next turn."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    for callback in callbacks:
        if isinstance(callback, Monitor):
            callback.publish_last(trainer)


def run_folder(trainer: Trainer, folder: str | Path | None = None) -> Path:
    """Where a run's own files go: `folder`, or where its logger keeps its files.

    Raises:
        ValueError: no logger keeps files in a local folder.
    """
    places = [folder] if folder is not None else [place for logger in trainer.loggers if (place := _log_dir(logger))]
    local = [Path(place) for place in places if "://" not in str(place)]
    if not local:
        raise ValueError("no logger of this run keeps files in a local folder; say where with folder=….")
    return local[0]


def _log_dir(logger: Any) -> str | None:
    """The logger's folder of this run: its own `log_dir`, or what ModelCheckpoint takes where there is none."""
    own = getattr(logger, "log_dir", None)
    if own or logger.save_dir is None:
        return own or None
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return os.path.join(logger.save_dir, str(logger.name), version)


def tensorboard_writers(trainer: Trainer) -> Iterator[tuple[Any, str]]:
    """The `SummaryWriter` of every TensorBoard logger, and what that logger puts before each tag."""
    for logger in trainer.loggers:
        writer = getattr(logger, "experiment", None)
        if hasattr(writer, "add_custom_scalars"):
            prefix = getattr(logger, "_prefix", "")
            yield writer, f"{prefix}{getattr(logger, 'LOGGER_JOIN_CHAR', '-')}" if prefix else ""
