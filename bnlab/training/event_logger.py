"""The TensorBoard logger of a run: a disk that is full, or a folder that was removed, does not end the run."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


class EventLogger(TensorBoardLogger):
    """Writes events until they cannot be written, and then says once what is lost.

    TensorBoard raises an error of its writing thread at some later value, which would end training.
    """

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer."""
        writer: Any = super().experiment  # on ranks other than 0 something that does nothing
        new = isinstance(writer, SummaryWriter) and not isinstance(writer.file_writer, _EventFile)
        if new and writer.file_writer is not None:
            writer.file_writer = _EventFile(writer.file_writer)
            writer.all_writers = {writer.file_writer.get_logdir(): writer.file_writer}
        return writer


class _EventFile:
    """An event file (torch's `FileWriter`) that is given up when it cannot be written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._file, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if self._failed and name != "get_logdir":  # half an event may stand in the file: none behind it is read
                return None
            try:
                return method(*arguments, **named)
            except OSError as error:
                self._failed = True
                warnings.warn(
                    f"No TensorBoard events for the rest of this run: {type(error).__name__}: {error}", stacklevel=2
                )
                return None

        return call
