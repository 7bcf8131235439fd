"""`WeightMonitor`: norms, spectral norms and stable ranks of a net's weight matrices."""

from time import perf_counter
from typing import Any

from torch import nn

from bnlab_callbacks.core.lightning.monitor import Monitor
from bnlab_callbacks.core.lightning.names import Trainer
from bnlab_callbacks.core.lightning.raw_steps import optimizer_steps
from bnlab_callbacks.recorders.weights import WeightRecorder, WeightTables


class WeightMonitor(Monitor):
    """Records how large weight matrices are, how much they stretch, and how many directions they use.

    A layer is a parameter with two or more dimensions, trained or not, as a matrix W (M, N): its first dimension
    against all others. All ranks have the same weights, and measure them alike. Values are those behind the optimizer
    step, in float32 or wider.

    Logs, for each layer, `NN` being its place in the order of execution, as for `GradientMonitor`:

    - `weight_norm/<NN>_<layer>`: ‖W‖_F = √Σw²
    - `weight_spectral_norm/…`: ‖W‖₂, its largest singular value. By power iteration, 32 at first and 4 at each further
      record, which go on where the last one stood: a bound from below, about 1 % off for a random 512 × 512 matrix at
      the first record, and less with each that follows
    - `weight_stable_rank/…`: ‖W‖_F² / ‖W‖₂²; 1 where one direction is all, at most min(M, N). NaN for zeros

    and at the end of each epoch the means over its records as `<quantity>_epoch/<NN>_<layer>`. The epoch values are in
    `trainer.callback_metrics` too, the last record in the attribute `latest`. Strategies that shard parameters (FSDP,
    DeepSpeed, ModelParallel) are refused with a warning.

    Args:
        every_n_steps: optimizer steps between two records; None for the Trainer's `log_every_n_steps`. The first
            step of the run and of every epoch is always recorded.
        layers: regular expression searched in layer names, for example `conv|fc1`; None for all layers.
        enabled: False switches the callback off.
        budget: largest share of the training time that this callback may take (0.01 for 1 %): it then records
            less often than `every_n_steps` says; None for no limit.

    Raises:
        ValueError: `every_n_steps` below 1, `budget` not above 0, or `layers` no regular expression.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        layers: str | None = None,
        enabled: bool = True,
        budget: float | None = None,
    ) -> None:
        super().__init__(every_n_steps, layers, enabled, budget)
        self._tables = WeightTables()
        self._weights: WeightRecorder | None = None
        self._due = False
        self._steps = 0  # made before the batch

    def watch(self, trainer: Trainer, model: nn.Module) -> None:
        """Find the matrices."""
        self._tables = WeightTables()
        self._tables.numbered = dict(self._loaded.get("numbered", {}))
        self._weights = WeightRecorder(model, self.wants, self._loaded.get("vectors", {}))
        layers = self._weights.layers
        if not any(map(self.wants, layers)):
            self.give_up(f"no layer's name matches layers={self.layers!r}; there are: {', '.join(layers)}.")

    def close(self) -> None:
        """Take the hooks off."""
        super().close()
        if self._weights is not None:
            self._weights.close()
        self._weights, self._due = None, False

    def begin_batch(self, trainer: Trainer) -> None:
        """Note whether the step is due."""
        assert self._weights is not None
        self._weights.begin_batch()
        self._due = self._due or self.due(self._moment)
        self._steps = optimizer_steps(trainer)

    def end_batch(self, trainer: Trainer) -> None:
        """Measure the weights, if a step was made and is due."""
        if not self._due or self._weights is None or optimizer_steps(trainer) == self._steps:
            return
        self._due = False
        self.mark(self._moment)
        start = perf_counter()
        left = self._weights.record()
        self.keep(left, self._tables.read, perf_counter() - start)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        vectors = {} if self._weights is None else self._weights.state_dict()
        return super().state_dict() | self._tables.state_dict() | {"vectors": vectors}
