"""`TrainingDiagnosis`: says what is wrong in a run, where, since when, and what to try."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bnlab_callbacks.diagnosis.batch_ends import BatchEnds, input_statistics, output_spread, task_of
from bnlab_callbacks.diagnosis.findings import Finding, worst
from bnlab_callbacks.diagnosis.inventory import (
    GradientSeen,
    constant_layers,
    frozen_layers,
    layers_without_optimizer,
    norm_momenta,
    norms_in_eval_mode,
)
from bnlab_callbacks.diagnosis.latch import Latch, in_order
from bnlab_callbacks.diagnosis.observations import Facts, History, Losses, Observation
from bnlab_callbacks.diagnosis.rule import Rule
from bnlab_callbacks.diagnosis.rules import RULES
from bnlab_callbacks.diagnosis.silent_monitors import (
    DenseSchedule,
    SilentActivationMonitor,
    SilentBatchNormMonitor,
    SilentGradientMonitor,
)
from bnlab_callbacks.diagnosis.summary import NOTHING_OF_THE_KIND, lines, to_dict, verdict_of, write
from bnlab_callbacks.lightning_api import (
    LightningModule,
    QuietCallback,
    Trainer,
    logged_step,
    rank_zero_warn,
    sharding_strategy,
)
from bnlab_callbacks.record_file import split_tag
from bnlab_callbacks.run_output import or_give_up, run_folder, tensorboard_writers
from bnlab_callbacks.scalars import gather_ranks, to_host, widest
from bnlab_callbacks.weights import find_weights

_WHOLE = ("output_std", "input_mean", "input_std", "input_absmax")
_TOGETHER = 5  # recorded steps that are looked at together, behind the first ones
_WAITING = 1000  # losses that wait for a look at most
_KEPT = 64  # observations that rules may look back on


class TrainingDiagnosis(QuietCallback):
    """Watches a run for what makes nets fail to train, and says so once, when it begins and when it is over.

    It looks at every step at the beginning of a run, where most failures show, and then at one of `every_n_steps`; at
    the losses of all steps. What it records it does not log: it needs no other callback and changes nothing of what
    others record. Weights, random numbers and results of a run are the same with and without it.

    Prints a line when a finding begins, and one when it is over; at the end of `fit` a table of the layers. Writes, on
    rank 0, `diagnosis.json` into the run's folder and, for TensorBoard loggers, the text `diagnosis`. Logs no scalars.

    With several ranks every rank comes to the same findings. Checkpoints hold them, so that a resumed run goes on with
    them. Works with any module, optimizer and loss; what a rule needs and cannot be seen (activation functions that are
    no modules, a loss that `training_step` does not return) is listed as not checked.

    Findings (`bnlab_callbacks.diagnosis`: `loss_rules`, `gradient_rules`, `activation_rules`, `batch_norm_rules`, with
    definitions, thresholds and what healthy runs show): `non_finite`, `exploding`, `vanishing`, `vanishing_with_depth`,
    `collapsed_output` (failing); `learning_rate_too_high`, `learning_rate_too_low`, `not_learning`, `doubled_softmax`,
    `loss_scale_overflow`, `no_gradient`, `not_updated`, `clipping_too_tight`, `dead_units`, `saturated`,
    `poor_initialisation`, `inputs_not_standardised`, `batch_norm_eval_mode`, `batch_norm_small_batch`,
    `batch_norm_running_statistics`, `batch_norm_gamma_collapsed` (warnings; notes where they are often meant).

    Attributes:
        findings: what was found so far, the gravest first; also those that are over.
        verdict: `failing`, `warning` or `healthy`, after what lasts.
        not_checked: rule → why it could not be checked.

    Args:
        first_steps: so many steps at the beginning are all looked at.
        every_n_steps: optimizer steps between two looks after that.
        stop: whether to end training once something failing has been found.
        without: names of rules to leave out.
        rules: rules of your own (`bnlab_callbacks.diagnosis.rule.Rule`), in addition.
        chance_loss: the loss of a net that knows nothing; None to find out: ln C for a classification of C classes, and
            for other tasks the largest of the first five losses.
        preflight: whether to look at the net with the first batch before it is trained on it, against theory
            (`bnlab_callbacks.diagnosis.preflight`), and print what that says; some thirty passes over the batch.
        summary: whether to print the table at the end.
        folder: where `diagnosis.json` goes; None for the folder of the run's logger; without either none is written.
        enabled: False switches the callback off.

    Raises:
        ValueError: `first_steps` or `every_n_steps` below 1, `chance_loss` not above 0, or no rule of a name in
            `without`.
    """

    def __init__(
        self,
        first_steps: int = 100,
        every_n_steps: int = 50,
        stop: bool = False,
        without: Sequence[str] = (),
        rules: Sequence[Rule] = (),
        chance_loss: float | None = None,
        preflight: bool = False,
        summary: bool = True,
        folder: str | None = None,
        enabled: bool = True,
    ) -> None:
        if first_steps < 1 or every_n_steps < 1:
            raise ValueError(f"first_steps={first_steps} and every_n_steps={every_n_steps} must be at least 1.")
        if chance_loss is not None and not chance_loss > 0:
            raise ValueError(f"chance_loss={chance_loss} is not above 0; for C classes it is ln C.")
        known = {rule.name for rule in (*RULES, *rules)}
        for name in without:
            if name not in known:
                raise ValueError(f"without={name!r}: there is no such rule; there are {', '.join(sorted(known))}.")
        self.first_steps = first_steps
        self.every_n_steps = every_n_steps
        self.stop = stop
        self.chance_loss = chance_loss
        self.preflight = preflight
        self.summary = summary
        self.folder = folder
        self.enabled = enabled
        self.active = False
        self.rules = tuple(rule for rule in (*RULES, *rules) if rule.name not in without)
        self._schedule = DenseSchedule(first_steps, every_n_steps)
        self._gradients = SilentGradientMonitor(self._schedule, self._take)
        self._activations = SilentActivationMonitor(DenseSchedule(first_steps, every_n_steps), self._take)
        self._norms = SilentBatchNormMonitor(DenseSchedule(first_steps, every_n_steps), self._take)
        self._ends = BatchEnds()
        self._restart()

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, the gravest first."""
        return in_order(self._latches)

    @property
    def verdict(self) -> str:
        """`failing`, `warning` or `healthy`, after what lasts."""
        return verdict_of(self.findings)

    @property
    def not_checked(self) -> dict[str, str]:
        """Rules that could not be checked in this run, and why."""
        reasons = [monitor.failure for monitor in (self._activations, self._gradients) if monitor.failure]
        reason = reasons[0] if reasons else NOTHING_OF_THE_KIND
        return {rule.name: reason for rule in self.rules if rule.needs and self._seen.isdisjoint(rule.needs)}

    def _restart(self) -> None:
        self.facts = Facts(chance_loss=self.chance_loss)
        self._latches = [Latch(rule) for rule in self.rules]
        self._losses = Losses()
        self._first: Observation | None = None
        self._observations: deque[Observation] = deque(maxlen=_KEPT)
        self._seen: set[str] = set()
        self._said: set[str] = set()
        self._pending: dict[int, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        self._waiting: list[tuple[int, Tensor]] = []  # losses, by step
        self._whole: dict[int, dict[str, Tensor]] = {}
        self._gradient_seen: GradientSeen | None = None
        self._batch: Any = None
        self._unknown_task = True
        self._recording = False
        self._ended = True

    # one fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run; a checkpoint's state is loaded after this."""
        if stage == "fit":
            self._restart()

    @property
    def _monitors(self) -> tuple[SilentGradientMonitor, SilentActivationMonitor, SilentBatchNormMonitor]:
        return self._gradients, self._activations, self._norms

    def give_up(self, reason: str) -> None:
        """Say once why nothing more is diagnosed, and let training go on."""
        self._stop()
        rank_zero_warn(f"TrainingDiagnosis is off for the rest of this run: {reason}")

    def _stop(self) -> None:
        self.active = False
        self._ends.remove()
        for monitor in self._monitors:
            monitor.stop()
        self._batch = None
        self._waiting.clear()
        self._whole.clear()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put hooks on, before anything is compiled."""
        self._stop()
        sharding = sharding_strategy(trainer)
        if sharding and self.enabled:
            self.give_up(f"{sharding} keeps only a part of each layer on a rank. Use the ddp strategy to see them.")
        elif self.enabled:
            self.active, self._ended = True, False
            self._begin(trainer, pl_module)

    @or_give_up
    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for monitor in self._monitors:
            monitor.on_fit_start(trainer, pl_module)
        self._ends.watch(pl_module)

    @or_give_up
    def _look_at_net(self, trainer: Trainer, pl_module: LightningModule) -> None:
        facts, weights = self.facts, list(find_weights(pl_module))
        facts.frozen = frozen_layers(pl_module)
        facts.without_optimizer = layers_without_optimizer(weights, trainer.optimizers)
        facts.norm_momentum = norm_momenta(pl_module)
        facts.weights = {weight.layer: weight.parameter.numel() for weight in weights}
        clip = trainer.gradient_clip_val
        by_norm = trainer.gradient_clip_algorithm in (None, "norm")
        facts.gradient_clip = float(clip) if clip and by_norm else None
        facts.scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not logged_step(trainer):
            facts.constant = constant_layers(weights)
        self._gradient_seen = GradientSeen(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the net as it is."""
        self._look_at_net(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open the hooks for a step that is looked at."""
        if self.active and self.preflight and not trainer.global_step and not batch_idx:
            self._look_before_training(trainer, pl_module, batch)
        self._recording = self.active and self._schedule.records(logged_step(trainer))
        if self._recording:
            for monitor in self._monitors:
                monitor.on_train_batch_start(trainer, pl_module, batch, batch_idx)
            self._open(trainer, batch)

    def _look_before_training(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        from bnlab_callbacks.diagnosis.preflight import preflight

        try:
            text = preflight(pl_module, batch, trainer=trainer).table()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            rank_zero_warn(f"TrainingDiagnosis makes no preflight: {type(error).__name__}: {error}")
        else:
            trainer.print(f"preflight, before step 0:\n{text}")

    @or_give_up
    def _open(self, trainer: Trainer, batch: Any) -> None:
        self._ends.gate.open = True
        if self._unknown_task:
            self._batch = batch
            self._whole[logged_step(trainer)] = input_statistics(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Shut the hooks."""
        if self._recording and self.active:
            for monitor in (self._activations, self._norms):
                monitor.on_before_backward(trainer, pl_module, loss)
            self._shut(trainer, loss.detach() * trainer.accumulate_grad_batches)

    @or_give_up
    def _shut(self, trainer: Trainer, loss: Tensor) -> None:
        output, batch = self._ends.take_output(), self._batch
        self._batch = None
        self._whole.setdefault(logged_step(trainer), {}).update(output_spread(output))
        if batch is not None:
            self._unknown_task = False
            task = task_of(batch, output, float(loss))
            self.facts.chance_loss = self.chance_loss or task.chance_loss
            self.facts.softmax_twice = task.softmax_twice

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the monitors' hooks again."""
        if self._recording and self.active:
            for monitor in (self._activations, self._norms):
                monitor.on_after_backward(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradients."""
        if self._recording and self.active:
            self._gradients.on_before_optimizer_step(trainer, pl_module, optimizer)
            if self._gradient_seen is not None:
                self._gradient_seen.look(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, and look at what was recorded, now or together with the next steps."""
        if not self.active:
            return
        step, parts = logged_step(trainer), trainer.accumulate_grad_batches
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if isinstance(loss, Tensor):
            self._waiting.append((step, loss.detach() if parts == 1 else loss.detach() * parts))
        if not self._recording:
            if len(self._waiting) >= _WAITING:
                self._look(trainer)
            return
        for monitor in self._monitors:
            monitor.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._ends.take_output()
        early = step < _TOGETHER or step % _TOGETHER == 0 or step >= self.first_steps
        if early and not trainer.fit_loop._should_accumulate():
            self._look(trainer)

    @or_give_up
    def _look(self, trainer: Trainer) -> None:
        for monitor in self._monitors:
            monitor.publish_last(trainer)
        losses, recorded = self._fetch(trainer)
        self._note_structure(trainer)
        for step in sorted({*losses, *recorded}):
            if step in losses:
                self._losses.add(step, fmean(losses[step]))
            if step in recorded:
                self._observe(trainer, recorded[step])
        if self.stop and worst(self.findings) == "failing":
            trainer.should_stop = True

    def _fetch(self, trainer: Trainer) -> tuple[dict[int, list[float]], dict[int, Observation]]:
        """Losses and observations of the steps since the last look: means over ranks; all ranks call this alike."""
        waiting, self._waiting = self._waiting, []
        whole, self._whole = self._whole, {}
        pending = dict(self._pending)
        self._pending.clear()
        steps = sorted({*whole, *pending})
        fields: list[Tensor | float] = [loss for _, loss in waiting]
        fields += [whole.get(step, {}).get(name, math.nan) for step in steps for name in _WHOLE]
        fields += [self.facts.chance_loss or math.nan, float(self.facts.softmax_twice)]
        device = trainer.strategy.root_device
        mine = torch.tensor(to_host(fields), dtype=widest(device), device=device)
        ranks = gather_ranks(trainer, mine).cpu()
        rows = ranks.mean(0).tolist()
        losses: dict[int, list[float]] = defaultdict(list)
        bad: dict[int, int] = {}
        for index, (step, _) in enumerate(waiting):
            losses[step].append(rows[index])
            for rank in torch.nonzero(~ranks[:, index].isfinite()).flatten().tolist():
                bad.setdefault(step, rank)
        chance = float(ranks[0, -2])  # rank 0's batch decides
        self.facts.chance_loss = None if math.isnan(chance) else chance
        self.facts.softmax_twice = bool(ranks[0, -1])
        numbers = iter(rows[len(waiting) : -2])
        seen = {}
        for step in steps:
            values = {name: value for name in _WHOLE if not math.isnan(value := next(numbers))}
            seen[step] = Observation(step, pending.get(step, {}), values, bad.get(step) if len(ranks) > 1 else None)
        return losses, seen

    def _take(self, step: int, values: dict[str, float]) -> None:
        """Take in what a monitor recorded in a step."""
        for tag, value in values.items():
            quantity, layer = split_tag(tag)
            if layer:
                self._pending[step][quantity][layer.partition("_")[2]] = value

    def _note_structure(self, trainer: Trainer) -> None:
        facts = self.facts
        facts.norm_eval = norms_in_eval_mode(trainer.lightning_module)
        facts.norm_values = dict(self._ends.norm_values)
        if self._gradient_seen is not None:
            facts.without_gradient = self._gradient_seen.layers

    def _observe(self, trainer: Trainer, observation: Observation) -> None:
        """Let every rule look at the next observation, and say what is new."""
        self._first = self._first or observation
        self._observations.append(observation)
        self._seen.update(observation.values, observation.whole)
        history = History(self._observations, self._first, self._losses, self.facts)
        if any(finding.name == "non_finite" for finding in self.findings):
            return  # nothing that comes after NaN tells anything
        for latch in self._latches:
            finding = latch.update(history)
            if finding is not None:
                self._say(trainer, finding)

    def _say(self, trainer: Trainer, finding: Finding) -> None:
        """Say what began or is over; what comes of something failing that lasts is found, but not said."""
        failing = {other.name for other in self.findings if other.severity == "failing" and other.ended is None}
        name = finding.name.replace("_", " ")
        if finding.ended is None and (not failing - {finding.name} or finding.severity == "failing"):
            if finding.name not in self._said or finding.severity == "failing":
                trainer.print(f"diagnosis: {finding.line}")
            self._said.add(finding.name)
        elif finding.ended is not None and finding.name in self._said and not failing:
            trainer.print(f"diagnosis: over since step {finding.ended}: {name} (began at step {finding.since})")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the next epoch."""
        if self.active:
            for monitor in self._monitors:
                monitor.on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what is left, and say what the run was like."""
        self._look(trainer)
        self._end(trainer)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what led up to it: Lightning calls no other hook then."""
        if trainer.world_size == 1:  # other ranks may be anywhere
            self._look(trainer)
        self._end(trainer)
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        self._stop()

    @or_give_up
    def _end(self, trainer: Trainer) -> None:
        if self._ended or not trainer.is_global_zero or self._first is None:
            return
        self._ended = True
        last = self._observations[-1] if self._observations else None
        content = to_dict(self.findings, last, self._losses.count, self.not_checked)
        text = lines(content)
        if self.summary:
            trainer.print("\n" + "\n".join(text))
        if trainer.fast_dev_run:  # type: ignore[attr-defined] # set by a connector
            return
        for writer, prefix in tensorboard_writers(trainer):
            writer.add_text(f"{prefix}diagnosis", "\n".join(f"    {line}" for line in text), logged_step(trainer))
        try:
            folder = run_folder(trainer, self.folder)
        except ValueError:  # no folder to write to
            return
        write(folder, content)

    # checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at what is left before it is saved: a run that goes on from there does not see it again."""
        if self.active:
            self._look(trainer)
            checkpoint.setdefault("callbacks", {})[self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Findings and baselines; lists, texts, numbers and tensors only."""
        first = self._first
        return {
            "latches": [[latch.rule.name, latch.state_dict()] for latch in self._latches],
            "losses": self._losses.state_dict(),
            "first": None
            if first is None
            else [first.step, {k: dict(v) for k, v in first.values.items()}, dict(first.whole)],
            "seen": sorted(self._seen),
            "said": sorted(self._said),
            "constant": dict(self.facts.constant),
            "task": [self._unknown_task, self.facts.chance_loss, self.facts.softmax_twice],
            "monitors": [monitor.state_dict() for monitor in self._monitors],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        saved: dict[str, list[Any]] = defaultdict(list)
        for name, state in state_dict["latches"]:
            saved[name].append(state)
        for latch in self._latches:
            if saved[latch.rule.name]:
                latch.load_state_dict(saved[latch.rule.name].pop(0))
        self._losses.load_state_dict(state_dict["losses"])
        self._first = None if state_dict["first"] is None else Observation(*state_dict["first"])
        self._seen, self._said = set(state_dict["seen"]), set(state_dict["said"])
        self.facts.constant = dict(state_dict["constant"])
        self._unknown_task, chance, self.facts.softmax_twice = state_dict["task"]
        self.facts.chance_loss = self.chance_loss or chance
        for monitor, state in zip(self._monitors, state_dict["monitors"], strict=True):
            monitor.load_state_dict(state)
