"""What the monitors share: they tell once what they cannot do, and never break the run that they watch."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from bnlab_callbacks.lightning_api import Callback, LightningModule, Trainer, rank_zero_warn, sharding_strategy
from bnlab_callbacks.naming import layer_filter
from bnlab_callbacks.scalars import EpochMeans
from bnlab_callbacks.schedule import RecordSchedule

P = ParamSpec("P")
M = TypeVar("M", bound="Monitor")


def never_break_training(method: Callable[Concatenate[M, P], None]) -> Callable[Concatenate[M, P], None]:
    """Make a hook a no-op while its monitor is off, and turn an error in it into one warning that switches it off."""

    @wraps(method)
    def guarded(self: M, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.active:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            self.give_up(f"{type(error).__name__}: {error}")

    return cast(Callable[Concatenate[M, P], None], guarded)


class Monitor(Callback):
    """A callback that records per-layer statistics of some optimizer steps.

    Args:
        every_n_steps: optimizer steps between two records; None for the Trainer's `log_every_n_steps`.
        layers: regular expression searched in layer names; None for all layers.
        enabled: False switches the callback off.
    """

    def __init__(self, every_n_steps: int | None = None, layers: str | None = None, enabled: bool = True) -> None:
        self.schedule = RecordSchedule(every_n_steps)
        self.layers = layers
        self.enabled = enabled
        self.active = False
        self.latest: dict[str, float] = {}
        self._filter = layer_filter(layers)
        self._means = EpochMeans()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run's records; a checkpoint's are loaded after this."""
        if stage == "fit":
            self.schedule.restart()

    def start(self, trainer: Trainer) -> bool:
        """Begin a `fit`: whether anything is to be recorded in it."""
        sharding = sharding_strategy(trainer)
        if self.enabled and sharding:
            self.give_up(
                f"{sharding} keeps only a part of each layer on a rank, and statistics of parts would be wrong. "
                "Use the ddp strategy to see them."
            )
        self.active = self.enabled and not sharding
        self._means = EpochMeans()
        return self.active

    def stop(self) -> None:
        """Leave nothing behind: no hooks, buffers or references. Harmless when repeated."""
        self.active = False

    def give_up(self, reason: str) -> None:
        """Say once why nothing more is recorded, and let training go on."""
        self.stop()
        rank_zero_warn(f"{type(self).__name__} is off for the rest of this run: {reason}")

    def wants(self, layer: str) -> bool:
        """Whether the layer filter lets `layer` through."""
        return self._filter.search(layer) is not None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop: on an exception Lightning calls no other hook."""
        self.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop, also where `fit` never began."""
        self.stop()

    def state_dict(self) -> dict[str, Any]:
        """Which slots have their record, so that a resumed run records the steps that the undisturbed one would."""
        return self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self.schedule.load_state_dict(state_dict)
