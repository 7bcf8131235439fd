"""The callbacks and settings of a Trainer that no section of the command line configures."""

from pathlib import Path

from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from bnlab.cli.advice import advice_for
from bnlab.resuming.checkpoint_file import DurableCheckpointIO
from bnlab.training import DivergenceStop
from bnlab.training.run_output import EventLogger, TimedProgressBar
from bnlab_callbacks import BatchNormMonitor, ChartLayout, LayerHeatmap, RecordFile, TrainingDiagnosis


def complete(trainer: Trainer, config: Namespace | None) -> None:
    """Add what every run has beside the sections' callbacks; `config` is the one of `bnlab fit`, else None."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    if [type(bar).__name__ for bar in bars] in (["TQDMProgressBar"], ["RichProgressBar"]):
        callbacks[callbacks.index(bars[0])] = TimedProgressBar()  # Lightning's default, not one of the user's
    if config is None:
        trainer.loggers = []
        return
    callbacks[:] = [DivergenceStop(), *(each for each in callbacks if not _is_needless(each, trainer, config))]
    for diagnosis in (each for each in callbacks if isinstance(each, TrainingDiagnosis)):
        diagnosis.advise = advice_for(config)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one of the user's
        trainer.strategy.checkpoint_io = DurableCheckpointIO()


def _is_needless(callback: Callback, trainer: Trainer, config: Namespace) -> bool:
    """Whether this run has nothing for a diagnostic, which would say so in a warning."""
    if isinstance(callback, BatchNormMonitor):
        return not (config["model"]["batch_norm"] or callback.smoothness_every_n_steps)
    if isinstance(callback, ChartLayout):
        given = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
        return not (given or _has_default_logger(config))
    return False


def _has_default_logger(config: Namespace) -> bool:
    return config["trainer"]["logger"] in (None, True)


def write_into(trainer: Trainer, folder: Path, config: Namespace) -> None:
    """Have the logger, the diagnostics and the checkpoints write into the run's folder, unless they have their own."""
    if _has_default_logger(config):
        # into the folder itself
        trainer.loggers = [EventLogger(folder, name=None, version="", default_hp_metric=False)]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LayerHeatmap | RecordFile | TrainingDiagnosis) and callback.folder is None:
            callback.folder = str(folder)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / "checkpoints")
