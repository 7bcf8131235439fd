"""`ActivationMonitor`: per-layer statistics of activation functions' outputs in training steps."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from bnlab_callbacks.core.lightning.forward_monitor import ForwardMonitor
from bnlab_callbacks.core.lightning.names import Trainer, rank_zero_info, rank_zero_warn
from bnlab_callbacks.core.records import Moment, Table
from bnlab_callbacks.recorders.activation_calls import ActivationStep, Call
from bnlab_callbacks.recorders.activation_tables import ActivationTables
from bnlab_callbacks.recorders.activations import ActivationRecorder
from bnlab_callbacks.recorders.tables import ELSEWHERE
from bnlab_callbacks.recorders.unseen import MEANT, Unseen
from bnlab_callbacks.statistics.dead_units import DeadUnit, EpochUnits


class ActivationMonitor(ForwardMonitor):
    """Records, activation by activation, moments, saturation and dead units of the outputs in training.

    Activations are modules (`nn.ReLU`, `nn.Sigmoid`, `nn.GELU` and their like: `statistics.activations.ACTIVATIONS`),
    the same as functions and methods (`F.relu(x)`, `x.relu()`, `torch.tanh(x)`, `F.glu(x)`), named
    `<module in whose forward pass it ran>.<function>`, and modules without parameters whose class is named like one
    (`NewGELUActivation`), whatever these call. Only forward passes of training steps count, in modules in training
    mode, with gradients: neither sanity checks nor validation, nor what activation checkpointing repeats, nor what runs
    under `no_grad` (momentum encoders). What runs outside of the net's modules (in `training_step`), in a metric or in
    a loss (a module without weights that gives one number, or is given targets) is none of the net's. What ran in the
    first epoch and is not recorded is counted and named once. An optimizer step's statistics cover all its accumulated
    batches and all ranks. All values are computed in float32 or wider.

    Logs, for each call, `NN` being its place in the order of execution (the second call of a layer is `<layer>.2`, and
    so on; more than 8 calls in one batch behind the same layer, as in nets that unroll time, are one layer):

    - `act_mean/<NN>_<layer>`, `act_std/…`, `act_absmax/…`: mean, standard deviation, largest magnitude
    - `act_outlier/…`: max|a| / rms, how far the largest output stands out; `act_kurtosis/…`: Σ(a − mean)⁴ / (n std⁴),
      3 for a normal distribution; NaN where outputs are all 0, or all equal
    - `act_effective_rank/…`, with `effective_rank=True`: exp(−Σ p ln p), p being the singular values of the outputs
      (samples and positions × units) as shares of their sum (Roy & Vetterli 2007): how many directions the units use,
      up to min(256, units). Of 256 samples and positions of each call; the mean over calls and ranks
    - `dormant_frac/…`: share of units (channels for convolutions) whose mean magnitude over the record is at most 2.5 %
      of the mean over the layer's units (Sokar et al. 2023, arXiv 2302.12902)
    - `sat_frac/…`: share of outputs where the function's slope is below 5 % of its maximum; for functions with two
      such sides also `sat_lo/…` and `sat_hi/…` (sigmoid, tanh, softsign, hard tanh, hard sigmoid; ELU, SELU, CELU and
      softplus have the low side only, ReLU6 and log-sigmoid the high one)
    - `zero_frac/…`: share of outputs that are exactly 0 (ReLU, ReLU6)
    - `dead_frac/…`: share of units (channels for convolutions) that were not once positive over every sample and
      position of the last `dead_window` records (ReLU, ReLU6)
    - `dead_samples/…`: number of samples that those records saw

    and at the end of each epoch `<quantity>_epoch/<NN>_<layer>`: the means over its records; `act_absmax_epoch` the
    maximum; `dead_frac_epoch` and `dead_samples_epoch` over all its records (with `exact_dead` over all its steps);
    `dead_revived_epoch`, how often a unit that had counted as dead was positive again. The epoch values are in
    `trainer.callback_metrics` too, the last record in the attribute `latest`.

    Which units are dead, since which step and over how many samples, and which came back is in the attribute `ledger`,
    a list of `DeadUnit`, brought up to date at the end of each epoch; checkpoints hold what it is made of. Units that
    were dormant in each of the last `dead_window` records are listed there, too, and those that no longer are.

    Args:
        every_n_steps: optimizer steps between two records; None for the Trainer's `log_every_n_steps`. The first
            step of the run and of every epoch is always recorded.
        layers: regular expression searched in layer names, for example `act1|act_fc`; None for all layers.
        dead_window: records over which a unit must be silent to count as dead, or dormant to be listed in the `ledger`.
        exact_dead: whether to look at rectifiers' units in every step, so that `dead_frac_epoch` covers all samples.
        effective_rank: whether to record the effective rank of the outputs, by a singular-value decomposition of up to
            256 rows for each call of a recorded step.
        enabled: False switches the callback off.
        budget: largest share of the training time that this callback may take (0.01 for 1 %): it then records
            less often than `every_n_steps` says; None for no limit.

    Raises:
        ValueError: `every_n_steps` or `dead_window` below 1, `budget` not above 0, or `layers` no regular expression.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        layers: str | None = None,
        dead_window: int = 10,
        exact_dead: bool = False,
        effective_rank: bool = False,
        enabled: bool = True,
        budget: float | None = None,
    ) -> None:
        super().__init__(every_n_steps, layers, enabled, budget)
        if dead_window < 1:
            raise ValueError(f"dead_window={dead_window} is below 1: give the number of records that it spans.")
        self.dead_window = dead_window
        self.exact_dead = exact_dead
        self.effective_rank = effective_rank
        self._ledger: list[DeadUnit] = []
        self._said = False  # what is not seen
        self._forget()

    @property
    def ledger(self) -> list[DeadUnit]:
        """Dead units, and those that came back, as of the last epoch's end."""
        self.take_over()
        return self._ledger

    def results(self) -> dict[str, Any]:
        """The last record and the ledger."""
        return super().results() | {"ledger": self._ledger}

    def load_results(self, results: dict[str, Any]) -> None:
        """Take over both."""
        super().load_results(results)
        self._ledger = [DeadUnit(*values) for values in results["ledger"]]

    def _forget(self) -> None:
        self._tables = ActivationTables(self.wants, self.dead_window, list_dormant=True)
        self._every_step = EpochUnits()

    def watch(self, trainer: Trainer, model: nn.Module) -> None:
        """Join the recorder of activations, which hooks every activation module."""
        self._ledger = []
        self._tables.load_state_dict(self._loaded)
        self._every_step.load_state_dict(self._loaded.get("every_step", {}), trainer.strategy.root_device)
        self._said = False
        self.join(ActivationRecorder, model)

    def close(self) -> None:
        """Take the hooks off, free buffers."""
        super().close()
        self._forget()

    def take_units(self, calls: Sequence[tuple[str, Call]]) -> None:
        """Count the units of a batch, whether its step is recorded or not."""
        for name, call in calls:
            if call.unit_max is not None and self.wants(call.layer):
                self._every_step.add(name, call.unit_max, call.samples)

    def take(self, moment: Moment, left: ActivationStep, seconds: float) -> None:
        """Keep what a step left."""
        self.keep(left, self._read, seconds)

    def _read(self, steps: Sequence[ActivationStep]) -> list[Table]:
        tables = self._tables.read(steps)
        if self._tables.different:
            self._tables.different = False
            rank_zero_warn("ActivationMonitor: ranks ran different layers in a recorded step; such steps are left out.")
        return tables

    def heed_failures(self) -> None:
        """Stop if recording failed on some rank: on all of them at once, or those that go on would wait for others."""
        if self._tables.failed:
            self.give_up(self._recorder.failure or ELSEWHERE)

    def epoch_values(self) -> dict[str, float]:
        """Maxima, and dead units over all records of the epoch, or over all its steps."""
        assert self._publisher is not None
        self._say_what_is_not_seen()
        values = self._tables.pop_epoch()
        if self.exact_dead:
            for name, dead in self._every_step.pop(self._publisher.recorders.ranks).items():
                if name in self._tables.numbered:
                    values[f"dead_frac_epoch/{self._tables.numbered[name]}"] = dead.fraction
                    values[f"dead_samples_epoch/{self._tables.numbered[name]}"] = float(dead.samples)
        self._ledger = self._tables.dead_units()
        return values

    def _say_what_is_not_seen(self) -> None:
        if self._said or self._recorder is None or not self._recorder.steps:
            return
        self._said = True
        unseen: Unseen = self._recorder.unseen
        lines = unseen.lines(self.wants)
        if not any(map(self.wants, unseen.seen)):
            reasons = "; ".join(lines.values()) or _nothing_seen(self.layers, unseen.seen)
            rank_zero_warn(f"ActivationMonitor has recorded nothing: {reasons}.")
            return
        for reason, line in lines.items():
            (rank_zero_info if reason in MEANT else rank_zero_warn)(f"ActivationMonitor: {line}.")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return super().state_dict() | self._tables.state_dict() | {"every_step": self._every_step.state_dict()}


def _nothing_seen(pattern: str | None, layers: list[str]) -> str:
    if layers:
        return f"no activation's name matches layers={pattern!r}; there are: {', '.join(layers)}"
    return "no activation function was called in a module in training mode"
