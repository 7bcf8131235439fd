"""`ActivationMonitor`: per-layer statistics of activation functions' outputs in training steps."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from bnlab_callbacks.activation_hooks import Call, Hook, Recorder, find_activations
from bnlab_callbacks.activation_merge import Merged, larger, layout, merge, pack_calls
from bnlab_callbacks.lightning_api import LightningModule, Trainer, logged_step, rank_zero_warn
from bnlab_callbacks.monitor import Monitor, never_break_training
from bnlab_callbacks.naming import number
from bnlab_callbacks.scalars import epoch_tag, gather_ranks, log_scalars, publish_epoch
from bnlab_callbacks.unit_window import UnitWindow

# what a rank sends in place of its layout when it has nothing to compare
_TOO_LONG, _FAILED = -1, -2


class ActivationMonitor(Monitor):
    """Records, activation module by activation module, moments, saturation and dead units of the outputs in training.

    Activation modules are `nn.ReLU`, `nn.Sigmoid`, `nn.GELU` and their like (`activation_statistics.ACTIVATIONS`).
    Functional calls (`F.relu(x)`) leave no module to watch and are not seen. Only forward passes of training steps
    count, in modules in training mode: neither sanity checks nor validation, nor what activation checkpointing repeats.
    An optimizer step's statistics cover all its accumulated batches and all ranks. All values are computed in float32
    or wider.

    Logs, for each call of a module, `NN` being its place in the order of execution (the second call of a module that is
    used again is `<layer>#2`, and so on):

    - `act_mean/<NN>_<layer>`, `act_std/…`, `act_absmax/…`: mean, standard deviation, largest magnitude
    - `sat_frac/…`: share of outputs where the function's slope is below 5 % of its maximum; for functions with two
      such sides also `sat_lo/…` and `sat_hi/…` (sigmoid, tanh, softsign, hard tanh, hard sigmoid; ELU, SELU, CELU and
      softplus have the low side only, ReLU6 and log-sigmoid the high one)
    - `zero_frac/…`: share of outputs that are exactly 0 (ReLU, ReLU6)
    - `dead_frac/…`: share of units (channels for convolutions) that were not once positive over every sample and
      position of the last `dead_window` records (ReLU, ReLU6)
    - `dead_samples/…`: number of samples that those records saw

    and at the end of each epoch `<quantity>_epoch/<NN>_<layer>`: the means over its records; `act_absmax_epoch` the
    maximum; `dead_frac_epoch` and `dead_samples_epoch` over all its records. The epoch values are in
    `trainer.callback_metrics` too, the last record in the attribute `latest`.

    Args:
        every_n_steps: optimizer steps between two records; None for the Trainer's `log_every_n_steps`. The first
            step of the run and of every epoch is always recorded.
        layers: regular expression searched in layer names, for example `act1|act_fc`; None for all layers.
        dead_window: records over which a unit must be silent to count as dead.
        enabled: False switches the callback off.

    Raises:
        ValueError: `every_n_steps` or `dead_window` below 1, or `layers` no regular expression.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        layers: str | None = None,
        dead_window: int = 10,
        enabled: bool = True,
    ) -> None:
        super().__init__(every_n_steps, layers, enabled)
        if dead_window < 1:
            raise ValueError(f"dead_window={dead_window} is below 1: give the number of records that it spans.")
        self.dead_window = dead_window
        self._handles: list[RemovableHandle] = []
        self._forget()

    def _forget(self) -> None:
        self._recorder = Recorder()
        self._numbered: dict[str, str] = {}
        self._pending: list[tuple[str, Call]] = []
        self._windows: dict[str, UnitWindow] = {}
        self._absmax: dict[str, float] = defaultdict(float)
        self._step_before = -1
        self._width = 0

    def stop(self) -> None:
        """Remove hooks, free buffers."""
        super().stop()
        self._recorder.gate.open = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook every activation module, once and before anything is compiled; shut hooks cost next to nothing."""
        self.stop()
        if not self.start(trainer):
            return
        found = list(find_activations(pl_module))
        if not any(self.wants(layer) for layer, _, _ in found):
            self.give_up(_nothing_to_see(self.layers, [layer for layer, _, _ in found]))
            return
        for layer, module, unit_dim in found:
            hook = Hook(layer, module, unit_dim, self.wants(layer), self._recorder)
            self._handles.append(module.register_forward_hook(hook))

    @never_break_training
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open the hooks for a step that is due, and keep them open over its accumulated batches."""
        if self._pending or self.schedule.due(trainer):
            if not self._pending:
                self._step_before = trainer.global_step
            self._recorder.gate.open = True

    @never_break_training
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Shut the hooks: forward passes within the backward pass are checkpointing's repetitions."""
        self._recorder.gate.open = False

    @never_break_training
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open them again: with manual optimization, more forward passes may follow in this step."""
        self._recorder.gate.open = self._pending != [] or self.schedule.due(trainer)

    @never_break_training
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Name this batch's calls; when they end in an optimizer step, publish the step's statistics."""
        recorder = self._recorder
        recorder.gate.open = False
        repeats: Counter[str] = Counter()
        for call in recorder.calls:
            repeats[call.layer] += 1
            again = repeats[call.layer]
            self._pending.append((call.layer if again == 1 else f"{call.layer}#{again}", call))
        recorder.calls.clear()
        if self._step_before in (-1, trainer.global_step):
            return
        self._step_before = -1
        self.schedule.mark(trainer)
        pending, self._pending = self._pending, []
        self._number(pending)
        merged = self._exchange(trainer, [(key, call) for key, call in pending if call.sums is not None])
        if merged is not None:
            self.latest = {tag: value for key, sums in merged.items() for tag, value in self._statistics(key, sums)}
            self._means.add(self.latest)
            log_scalars(trainer, self.latest, logged_step(trainer))
        if recorder.failure:
            self.give_up(recorder.failure)

    @never_break_training
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the epoch's means, maxima, and dead units over all its records."""
        metrics = self._means.pop()
        metrics |= {epoch_tag(tag): value for tag, value in self._absmax.items()}
        self._absmax.clear()
        for name, window in self._windows.items():
            dead = window.pop_epoch()
            metrics[f"dead_frac_epoch/{name}"] = dead.fraction
            metrics[f"dead_samples_epoch/{name}"] = float(dead.samples)
        publish_epoch(trainer, metrics, logged_step(trainer) - 1)

    def _number(self, pending: list[tuple[str, Call]]) -> None:
        """Fix the numbers at the first record; what turns up later gets the next ones: no tag ever changes its name."""
        if not self._numbered:
            self._numbered = number(dict.fromkeys(key for key, _ in pending))
        for key, _ in pending:
            self._numbered.setdefault(key, f"{len(self._numbered):02d}_{key}")

    def _exchange(self, trainer: Trainer, calls: list[tuple[str, Call]]) -> dict[str, Merged] | None:
        """Statistics of the step's calls over all ranks, through one copy off the device and one collective.

        None where ranks saw different layers in this step; every rank then skips it, so that none waits for another.
        """
        if trainer.world_size == 1 and not calls:
            return {}
        vector, where = pack_calls(calls, trainer.strategy.root_device)
        if trainer.world_size == 1:
            return merge(calls, where, vector.cpu().unsqueeze(0))
        if not self._width:  # agreed upon once: an exchange of vectors of different lengths would hang
            self._width = int(gather_ranks(trainer, torch.tensor([vector.numel()], device=vector.device)).max())
        message = vector.new_full((self._width + 1,), float(_TOO_LONG))
        if vector.numel() <= self._width:
            message[0] = _FAILED if self._recorder.failure else layout(calls, where)
            message[1 : vector.numel() + 1] = vector
        gathered = gather_ranks(trainer, message).cpu()
        layouts = gathered[:, 0]
        if bool((layouts == _FAILED).any()):
            self._recorder.failure = self._recorder.failure or "it failed on another rank"
        if bool((layouts != layouts[0]).any()) or layouts[0] < 0:
            rank_zero_warn("ActivationMonitor: ranks ran different layers in a recorded step; such steps are left out.")
            return None
        return merge(calls, where, gathered[:, 1 : vector.numel() + 1])

    def _statistics(self, key: str, merged: Merged) -> Iterator[tuple[str, float]]:
        """Tags and values of one call's statistics."""
        name, count = self._numbered[key], merged.moments.n
        yield f"act_mean/{name}", merged.moments.mean
        yield f"act_std/{name}", merged.moments.std
        yield f"act_absmax/{name}", merged.absmax
        tag = f"act_absmax/{name}"
        self._absmax[tag] = larger(self._absmax[tag], merged.absmax)
        sides = {"sat_lo": merged.low, "sat_hi": merged.high}
        shares = {side: number / count for side, number in sides.items() if number is not None}
        if shares:
            yield f"sat_frac/{name}", sum(shares.values())
        if len(shares) == 2:
            yield from ((f"{side}/{name}", share) for side, share in shares.items())
        if merged.zeros is not None and merged.active is not None:
            yield f"zero_frac/{name}", merged.zeros / count
            window = self._windows.setdefault(name, UnitWindow(self.dead_window))
            window.add(merged.active, int(merged.samples))
            dead = window.window()
            yield f"dead_frac/{name}", dead.fraction
            yield f"dead_samples/{name}", float(dead.samples)


def _nothing_to_see(pattern: str | None, layers: list[str]) -> str:
    if layers:
        return f"no activation module's name matches layers={pattern!r}; there are: {', '.join(layers)}."
    return (
        "the model has no activation modules. Functional calls such as F.relu(x) cannot be seen; "
        "use modules (self.act = nn.ReLU()) to record them."
    )
