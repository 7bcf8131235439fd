"""`Diagnostics`: all of the package's callbacks that suit most runs, as one callback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from importlib.util import find_spec
from typing import Any

from bnlab_callbacks.activation_monitor import ActivationMonitor
from bnlab_callbacks.batch_norm_monitor import BatchNormMonitor
from bnlab_callbacks.chart_layout import ChartLayout
from bnlab_callbacks.core.lightning.names import Callback, LightningModule, Trainer
from bnlab_callbacks.core.lightning.tensorboard import tensorboard_writers
from bnlab_callbacks.core.lightning.trainer import callbacks_of
from bnlab_callbacks.diagnosis.findings import Finding
from bnlab_callbacks.diagnosis.training_diagnosis import TrainingDiagnosis
from bnlab_callbacks.epoch_timer import EpochTimer
from bnlab_callbacks.gradient_monitor import GradientMonitor
from bnlab_callbacks.heatmap import LayerHeatmap
from bnlab_callbacks.record_file import RecordFile
from bnlab_callbacks.recorders.batch_norm import find_batch_norms


def _parts_are_told(hook: str) -> Callable[..., None]:
    """A hook that calls that of each part which has it."""

    @wraps(getattr(Callback, hook))
    def tell(self: Diagnostics, *args: Any, **kwargs: Any) -> None:
        for method in self._methods(hook):
            method(*args, **kwargs)

    return tell


class Diagnostics(Callback):
    """Gradients, activations, batch norm, epoch times, a diagnosis, pictures and a table of all records: one line.

    >>> trainer = Trainer(callbacks=Diagnostics())  # doctest: +SKIP

    Its parts are those of `PARTS`, with their defaults. A part whose kind the Trainer has among its own callbacks stays
    away, so that `Trainer(callbacks=[Diagnostics(), GradientMonitor(every_n_steps=1)])` changes one of them. Pictures
    need matplotlib, charts in TensorBoard a logger that writes for it, BatchNormMonitor a net with batch norm: what has
    nothing to do is left out.

    Weights, random numbers and results of a run are the same with and without it. Checkpoints hold the states of all
    parts.

    Attributes:
        parts: the callbacks that are at work in the present run; before it, all.

    Args:
        every_n_steps: optimizer steps between two records of the monitors; None for the Trainer's `log_every_n_steps`.
        without: names of parts to leave out.
        folder: where `diagnosis.json`, `records.csv` and `heatmaps/` go; None for the run's folder
            (`callbacks/README.md`): its logger's, or one of its own.
        stop: whether to end training once something failing has been found.
        on_finding: a function that is called with each finding, as in `TrainingDiagnosis`.
        enabled: False switches all of it off.

    Raises:
        ValueError: there is no part of a name in `without`, or `every_n_steps` is below 1.
    """

    PARTS = (
        "GradientMonitor",
        "ActivationMonitor",
        "BatchNormMonitor",
        "EpochTimer",
        "TrainingDiagnosis",
        "RecordFile",
        "LayerHeatmap",
        "ChartLayout",
    )

    def __init__(
        self,
        every_n_steps: int | None = None,
        without: Sequence[str] = (),
        folder: str | None = None,
        stop: bool = False,
        on_finding: Callable[[Finding], object] | None = None,
        enabled: bool = True,
    ) -> None:
        for name in without:
            if name not in self.PARTS:
                raise ValueError(f"without={name!r}: there is no such part; there are {', '.join(self.PARTS)}.")
        self.every_n_steps = every_n_steps
        self.without = tuple(without)
        self.folder = folder
        self.stop = stop
        self.on_finding = on_finding
        self.enabled = enabled
        every: list[Callback] = [
            GradientMonitor(every_n_steps),
            ActivationMonitor(every_n_steps),
            BatchNormMonitor(every_n_steps),
            EpochTimer(),
            TrainingDiagnosis(stop=stop, folder=folder, on_finding=on_finding),
            RecordFile(folder),
            LayerHeatmap(folder=folder),
            ChartLayout(),
        ]
        self._own = [part for part in every if enabled and type(part).__name__ not in without]
        self.parts = list(self._own)
        self._told: dict[str, list[Callable[..., None]]] = {}

    @property
    def diagnosis(self) -> TrainingDiagnosis | None:
        """The diagnosis, with its `verdict` and `findings`; None where it was left out."""
        return next((part for part in self._own if isinstance(part, TrainingDiagnosis)), None)

    def _methods(self, hook: str) -> list[Callable[..., None]]:
        """The parts' methods for a hook, looked up once."""
        if hook not in self._told:
            have = [part for part in self.parts if getattr(type(part), hook) is not getattr(Callback, hook)]
            self._told[hook] = [getattr(part, hook) for part in have]
        return self._told[hook]

    def _are_at_work(self, parts: Sequence[Callback]) -> None:
        self.parts, self._told = list(parts), {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin with the parts that this Trainer has use for."""
        self._are_at_work(self._own)
        if stage == "fit":
            self._are_at_work([part for part in self._own if not _is_there(trainer, part) and _can_draw(trainer, part)])
        for part in self.parts:
            part.setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave parts out whose kind has joined the Trainer since, or that have nothing to see in this net."""
        idle = [part for part in self.parts if _is_there(trainer, part) or _sees_nothing(pl_module, part)]
        for part in idle:
            part.teardown(trainer, pl_module, "fit")
        if idle:
            self._are_at_work([part for part in self.parts if part not in idle])
        for method in self._methods("on_fit_start"):
            method(trainer, pl_module)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_told": {}}  # a copy's are its own parts'

    on_train_start = _parts_are_told("on_train_start")
    on_train_epoch_start = _parts_are_told("on_train_epoch_start")
    on_train_batch_start = _parts_are_told("on_train_batch_start")
    on_before_backward = _parts_are_told("on_before_backward")
    on_after_backward = _parts_are_told("on_after_backward")
    on_before_optimizer_step = _parts_are_told("on_before_optimizer_step")
    on_train_batch_end = _parts_are_told("on_train_batch_end")
    on_validation_start = _parts_are_told("on_validation_start")
    on_validation_end = _parts_are_told("on_validation_end")
    on_train_epoch_end = _parts_are_told("on_train_epoch_end")
    on_train_end = _parts_are_told("on_train_end")
    on_fit_end = _parts_are_told("on_fit_end")
    on_exception = _parts_are_told("on_exception")
    teardown = _parts_are_told("teardown")

    # checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Hold what parts would put into a checkpoint themselves."""
        own: dict[str, Any] = {**checkpoint, "callbacks": {}}
        for method in self._methods("on_save_checkpoint"):
            method(trainer, pl_module, own)
        states = checkpoint.setdefault("callbacks", {})
        states[self.state_key] = {**states.get(self.state_key, {}), **own["callbacks"]}

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts."""
        states = {part.state_key: part.state_dict() for part in self.parts}
        return {key: state for key, state in states.items() if state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        for part in self.parts:
            if part.state_key in state_dict:
                part.load_state_dict(state_dict[part.state_key])


def _is_there(trainer: Trainer, part: Callback) -> bool:
    """Whether a Trainer has a callback of this kind of its own."""
    return any(isinstance(other, type(part)) for other in callbacks_of(trainer))


def _sees_nothing(pl_module: LightningModule, part: Callback) -> bool:
    """Whether this is the monitor of batch norm, and the net has none: no news to somebody who did not ask for it."""
    return isinstance(part, BatchNormMonitor) and not any(find_batch_norms(pl_module))


def _can_draw(trainer: Trainer, part: Callback) -> bool:
    """Whether there is what a part writes to or with."""
    if isinstance(part, ChartLayout):
        return bool(list(tensorboard_writers(trainer)))
    return not isinstance(part, LayerHeatmap) or find_spec("matplotlib") is not None
