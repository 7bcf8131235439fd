"""The common part of callbacks that turn a run's records into files and events."""

from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.lightning.diagnostic import Diagnostic
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer
from bnlab_callbacks.core.lightning.publisher import Publisher, publisher_of
from bnlab_callbacks.core.lightning.run_folder import RunFolder, run_folder_of
from bnlab_callbacks.core.lightning.trainer import is_trial, last_step
from bnlab_callbacks.core.records import Record


class RunOutput(Diagnostic):
    """A callback that writes what was recorded in a `fit`: on rank 0 only, and not under `fast_dev_run`.

    An epoch is written when the next one starts or training ends: then every callback has published its epoch's values,
    and Lightning has computed its own, whatever the order of the callbacks.

    Args:
        enabled: False switches the callback off.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(enabled)
        self._fitting = False
        self._ended: tuple[int, int] | None = None  # step and epoch of an epoch that is yet to be written
        self._publisher: Publisher | None = None
        self.place: RunFolder | None = None  # while active

    # what a callback of one kind adds

    def begin(self, trainer: Trainer) -> None:
        """Prepare for a `fit`; nothing is to be written yet."""

    def take(self, trainer: Trainer, record: Record) -> None:
        """Take in a record."""

    def epoch_ended(self, trainer: Trainer, step: int, epoch: int) -> None:
        """Write what an epoch left, at its last step. Called on all ranks."""

    def finish(self, trainer: Trainer) -> None:
        """Write what is left, at the end of a `fit` or after an exception in it."""

    # for those with files

    def folder_to_keep(self, folder: str | None) -> str | None:
        """What a checkpoint holds of the run's folder, for a callback that was given this one."""
        return None if self.place is None else self.place.name_to_keep(folder)

    def go_on_in(self, folder: str | None) -> None:
        """Go on in the folder of a checkpoint's run."""
        if self.place is not None:
            self.place.go_on(folder)

    # one fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin, before anything is recorded."""
        if stage == "fit":
            self._listen_no_more()
            self._ended = self._state = None
            self._fitting = self.enabled and not is_trial(trainer)
            self.active = self._fitting and trainer.is_global_zero
            self._begin(trainer)

    @keeps_training
    def _begin(self, trainer: Trainer) -> None:
        self._publisher = publisher_of(trainer)
        self._publisher.listeners.append(self)
        self.place = run_folder_of(trainer)
        self.place.join(self)
        self.begin(trainer)

    def _listen_no_more(self) -> None:
        if self._publisher is not None and self in self._publisher.listeners:
            self._publisher.listeners.remove(self)
        self._publisher = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know that this is no search for a learning rate or a batch size."""
        if self.place is not None:
            self.place.begin_training()

    @keeps_training
    def on_record(self, trainer: Trainer, record: Record) -> None:
        """Take in a record."""
        self.take(trainer, record)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the epoch ended."""
        self._ended = (last_step(trainer), trainer.current_epoch)

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
        self.settle(trainer)
        self._close_alone(trainer)
        self._end(trainer)

    @keeps_training
    def _close_alone(self, trainer: Trainer) -> None:
        publisher_of(trainer).publish_kept(trainer)
        if trainer.world_size == 1:  # other ranks may be anywhere
            self._close_epoch(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what is left."""
        self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        self.keep_state(trainer)
        self._finish(trainer)
        self._listen_no_more()
        if self.place is not None:
            self.place.leave(self)
            self.place = None
        self.active = self._fitting = False

    @keeps_training
    def _finish(self, trainer: Trainer) -> None:
        self.finish(trainer)
