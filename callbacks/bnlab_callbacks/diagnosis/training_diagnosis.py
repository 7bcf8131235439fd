"""`TrainingDiagnosis`: says what is wrong in a run, where, since when, and what to try."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from bnlab_callbacks.core.batches import batch_length
from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.handover import Handover
from bnlab_callbacks.core.lightning.diagnostic import Diagnostic
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer, rank_zero_warn
from bnlab_callbacks.core.lightning.publisher import publisher_of
from bnlab_callbacks.core.lightning.raw_steps import optimizer_steps
from bnlab_callbacks.core.lightning.report import add_text, show, write_json
from bnlab_callbacks.core.lightning.run_folder import RunFolder, run_folder_of
from bnlab_callbacks.core.lightning.trainer import (
    accumulates,
    clipping_of,
    has_loss_scaler,
    is_trial,
    logged_step,
    moment_of,
    optimizer_name,
    remaining_loss_scale,
    schedules_of,
    sharding_strategy,
    steps_to_make,
)
from bnlab_callbacks.core.naming import clean_name, with_new_names
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.diagnosis.findings import Finding
from bnlab_callbacks.diagnosis.judging.judge import SHORT, Judge, chosen_rules
from bnlab_callbacks.diagnosis.observations import Facts
from bnlab_callbacks.diagnosis.outcome import Outcome
from bnlab_callbacks.diagnosis.rules.rule import Rule
from bnlab_callbacks.diagnosis.summary import FILE, brief, lines
from bnlab_callbacks.diagnosis.watching.batch_tensors import samples_of_vectors
from bnlab_callbacks.diagnosis.watching.inventory import facts_of, norms_in_eval_mode
from bnlab_callbacks.diagnosis.watching.layer_watch import LayerWatch
from bnlab_callbacks.diagnosis.watching.optimizer_facts import OptimizerWatch
from bnlab_callbacks.diagnosis.watching.run_watch import RunWatch
from bnlab_callbacks.diagnosis.watching.step_collector import Collected, DisagreementError


class TrainingDiagnosis(Diagnostic):
    """Watches a run for what makes nets fail to train, and says so once, when it begins and when it is over.

    It looks at every step at the beginning of a run, where most failures show, soon at one of five, and then at one of
    `every_n_steps`; at the losses of all steps. What it records it does not log: it needs no other callback and changes
    nothing of what others record. It shares the recorders of the Trainer's monitors, so that nothing is recorded twice.
    Weights, random numbers and results of a run are the same with and without it.

    What was recorded is brought to the host in one copy and judged within 3 seconds; with `stop`, and on several ranks,
    at once (the first 20 steps, but for the first five, in fives). What is found is the same.

    Prints a line when a finding begins, with what it explains, and one when it is over; at the end of `fit` one line,
    or, where something is wrong, a table of the layers. Writes, on rank 0, `diagnosis.json` into the run's folder
    (`diagnosis-2.json` if a run before has left one there; a resumed run goes on in its own) and, for TensorBoard
    loggers, the text `diagnosis`. Logs no scalars.

    With several ranks every rank comes to the same findings, and where a strategy starts processes of its own, the main
    process has them too. Checkpoints hold them, so that a resumed run goes on with them. Works with any module,
    optimizer and loss; what a rule needs and cannot be seen (functions in compiled code, targets that are not of the
    batch) is listed as not checked.

    Findings (the rules in `bnlab_callbacks/diagnosis/rules` have their definitions, their thresholds and what healthy
    runs show): `non_finite`, `exploding`, `vanishing`, `vanishing_with_depth`, `collapsed_output`, `independent_loss`,
    `unreachable_targets`, `broadcast_loss`, `targets_not_binary`, `not_log_probabilities`, `negated_loss`, `zero_loss`
    (failing); `labels_all_equal`, `learning_rate_too_high`, `learning_rate_too_low`, `schedule_of_another_length`,
    `not_learning`, `doubled_softmax`, `loss_scale_overflow`, `epsilon_underflow`, `updates_lost_to_rounding`,
    `no_gradient`, `no_activation`, `not_updated`, `gradients_not_cleared`, `clipping_too_tight`, `batch_of_one`,
    `dead_units`, `saturated`, `poor_initialisation`, `inputs_not_standardised`, `batch_norm_eval_mode`,
    `batch_norm_small_batch`, `batch_norm_running_statistics`, `batch_norm_gamma_collapsed` (warnings; notes where they
    are often meant).

    Attributes:
        findings: what was found so far, each cause before what it explains; also those that are over.
        verdict: `failing`, `warning` or `healthy`, after what lasts; `unknown` where nothing can be told.
        reason: why the verdict is unknown; None where it is not.
        not_checked: rule → why it could not be checked.
        advise: a function of an advice's stable key and its text (as in `Finding`), which gives the text to show, or
            None to leave that advice out; where it would leave out all that a finding advises, the texts stay. To be
            set before `fit`; None for the texts as they are.

    Args:
        first_steps: so many steps at the beginning are all looked at, and one of five of the next four times as many.
        every_n_steps: optimizer steps between two looks after that.
        stop: whether to end training once something failing has been found.
        without: names of rules to leave out.
        rules: rules of your own (`bnlab_callbacks.diagnosis.Rule`), in addition.
        chance_loss: the loss of a net that knows nothing; None to find out: that of the best constant output on the
            targets so far, where the loss is seen to compare outputs with targets.
        preflight: whether to look at the net with the first batch before it is trained on it, against theory
            (`bnlab_callbacks.preflight`), and print what that says; some thirty passes over the batch.
        summary: whether to print what the run was like at the end.
        folder: where `diagnosis.json` goes; None for the run's folder (`callbacks/README.md`): its logger's, or one of
            its own.
        on_finding: a function that is called on rank 0 with each `Finding` that begins or becomes graver, those that
            explain others first; what it raises is said once, and ends nothing.
        enabled: False switches the callback off.

    Raises:
        ValueError: `first_steps` or `every_n_steps` below 1, `chance_loss` not above 0, or no rule of a name in
            `without`.
    """

    def __init__(
        self,
        first_steps: int = 20,
        every_n_steps: int = 50,
        stop: bool = False,
        without: Sequence[str] = (),
        rules: Sequence[Rule] = (),
        chance_loss: float | None = None,
        preflight: bool = False,
        summary: bool = True,
        folder: str | None = None,
        on_finding: Callable[[Finding], object] | None = None,
        enabled: bool = True,
    ) -> None:
        super().__init__(enabled)
        if first_steps < 1 or every_n_steps < 1:
            raise ValueError(f"first_steps={first_steps} and every_n_steps={every_n_steps} must be at least 1.")
        if chance_loss is not None and not chance_loss > 0:
            raise ValueError(f"chance_loss={chance_loss} is not above 0; for C classes it is ln C.")
        self.first_steps = first_steps
        self.every_n_steps = every_n_steps
        self.stop = stop
        self.chance_loss = chance_loss
        self.preflight = preflight
        self.summary = summary
        self.folder = folder
        self.on_finding = on_finding
        self.advise: Callable[[str, str], str | None] | None = None
        self.rules = chosen_rules(without, rules)
        self._handover = Handover()
        self._restart()

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, each cause before what it explains; first what lasts, the gravest first."""
        return self._outcome.findings

    @property
    def facts(self) -> Facts:
        """The run's properties beside its records, as at the last look."""
        return self._judge.facts

    @property
    def verdict(self) -> str:
        """`failing`, `warning` or `healthy`, after what lasts; `unknown` where nothing can be told (see `reason`)."""
        return self._outcome.verdict

    @property
    def reason(self) -> str | None:
        """Why the verdict is unknown; None where it is not."""
        return self._outcome.reason

    @property
    def not_checked(self) -> dict[str, str]:
        """Rules that could not be checked in this run, and why."""
        return self._outcome.not_checked

    def _restart(self) -> None:
        self._judge = Judge(self.rules, self.chance_loss, self.advise, self._say, self._tell)
        self._watch = RunWatch(self.first_steps, self.every_n_steps, prompt=self.stop)
        self._optimizers = OptimizerWatch()
        self._layers: LayerWatch | None = None
        self._samples: int | None = None
        self._facts_then: dict[int, dict[str, Any]] = {}
        self._ended = self._alone = True
        self._moment = Moment(0, 0)
        self._print: Callable[[str], None] = print
        self._tells = False  # whether the user's function is called
        self._failure: str | None = None  # of this rank, until all ranks know of it: none may stop alone
        off = "no training was seen" if self.enabled else "it is switched off"
        self._outcome = Outcome(self._judge, self._watch, self._handover, off)
        self._modules: list[str] = []
        self._in_batch = self._short = False
        self._state: dict[str, Any] | None = None
        self._place: RunFolder | None = None  # where a file is to be written

    def _say(self, line: str) -> None:
        show(self._print, [line])

    def _tell(self, finding: Finding) -> None:
        if self._tells and self.on_finding is not None:
            try:
                self.on_finding(finding)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong with the user's function, training goes on
                self._tells = False
                rank_zero_warn(f"on_finding is called no more in this run: {type(error).__name__}: {error}")

    # one fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run, however it ended; a checkpoint's state is loaded after this."""
        if stage == "fit":
            self.close()
            self._restart()
            if self.enabled and trainer.is_global_zero and not is_trial(trainer):
                self._place = run_folder_of(trainer)
                self._place.join(self)

    def fail(self, reason: str) -> None:
        """Give up; with several ranks at the next look, all of them together, or the others would wait for this one."""
        if self._alone:
            self.give_up(reason)
        else:
            self._failure = self._failure or reason

    def give_up(self, reason: str) -> None:
        """Say once why nothing more is done, and let training go on; what was found until then stays."""
        self._outcome.off = f"it was off: {reason.rstrip('.')}"
        super().give_up(reason)

    def close(self) -> None:
        """Leave nothing behind."""
        super().close()
        self._watch.stop()
        self._facts_then.clear()
        self._optimizers = OptimizerWatch()
        self._layers = None
        self._print = print  # not the Trainer's, which it would keep alive

    def _leave(self) -> None:
        self.close()
        if self._place is not None:
            self._place.leave(self)
            self._place = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put hooks on, before anything is compiled."""
        if not self.enabled:
            return
        self.active, self._ended, self._alone = True, False, trainer.world_size == 1
        self._print, self._tells, self._outcome.off = trainer.print, trainer.is_global_zero, None
        self._name_file(trainer)
        if sharding := sharding_strategy(trainer):
            self.give_up(f"{sharding} keeps only a part of each layer on a rank. Use the ddp strategy to see them.")
        self._start(trainer, pl_module)

    @keeps_training
    def _name_file(self, trainer: Trainer) -> None:
        if self._place is not None and (folder := self._place.find(self.folder)) is not None:
            self._outcome.name_file(folder, trainer.ckpt_path is not None)

    @keeps_training
    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.several = not pl_module.automatic_optimization
        self._watch.start(pl_module, publisher_of(trainer).recorders)

    @keeps_training
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the net as it is."""
        if self._place is not None:
            self._place.begin_training()
        first = logged_step(trainer) == 0
        facts = facts_of(pl_module, trainer.optimizers, first)
        facts.gradient_clip, facts.clip_value = clipping_of(trainer)
        facts.has |= {"clip"} if facts.gradient_clip or facts.clip_value else set()
        facts.scaled = has_loss_scaler(trainer)
        facts.run_steps, facts.epoch_steps = steps_to_make(trainer)
        self._modules = [clean_name(name) for name, _ in pl_module.named_modules()]
        self._judge.know(facts, resumed=not first)
        self._optimizers = OptimizerWatch(pl_module, trainer.optimizers, schedules_of(trainer))
        self._layers = LayerWatch(pl_module, self._judge.facts.constant)
        self._watch.scales = self._layers.scales
        self.hear_of_raw_steps(trainer, self._watch.step_recorder)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the hooks on for a step that is recorded."""
        if self.active and self.preflight and not trainer.global_step and not batch_idx:
            self._look_before_training(trainer, pl_module, batch)
        self._begin_batch(trainer, batch)

    @keeps_training
    def _begin_batch(self, trainer: Trainer, batch: Any) -> None:
        self._moment, self._in_batch = moment_of(trainer), True
        self._watch.begin_batch(self._moment, optimizer_steps(trainer), batch)
        if self._watch.recording:
            self._optimizers.begin_step(self._moment.step)
            samples = samples_of_vectors(batch)
            self._samples = samples and samples * trainer.accumulate_grad_batches * trainer.world_size

    def _look_before_training(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        from bnlab_callbacks.diagnosis.preflight import preflight

        try:
            text = preflight(pl_module, batch, trainer=trainer, advise=self.advise).table()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            rank_zero_warn(f"TrainingDiagnosis makes no preflight: {type(error).__name__}: {error}")
        else:
            show(trainer.print, ["preflight, before step 0:", *text.splitlines()])

    @keeps_training
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stop the hooks: forward passes within the backward pass are checkpointing's repetitions."""
        if self._layers is not None:
            self._layers.trace(loss)
        self._watch.before_backward(loss, trainer.accumulate_grad_batches, self._judge.facts.scaled)
        self._optimizers.cleared.before_backward()

    @keeps_training
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the hooks record again: more forward passes may follow in this step."""
        self._watch.after_backward()
        if self._raw_steps is not None and self._watch.leads_gradients:
            self._raw_steps.after_backward()
        self._optimizers.cleared.after_backward()

    @keeps_training
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradients."""
        raw = self.told_of(optimizer)
        scale, stream = partial(remaining_loss_scale, trainer, optimizer), optimizer_name(trainer, optimizer)
        self._watch.before_optimizer_step(optimizer, stream, self._moment, scale, raw)
        self._optimizers.before_step(optimizer, self._watch.recording)
        if self._watch.recording and self._layers is not None:
            self._layers.look(optimizer)

    @keeps_training
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, and look at what was recorded, now or together with the next steps."""
        loss = outputs.get("loss") if isinstance(outputs, (dict, Mapping)) else None  # a dict in most runs: asked first
        if isinstance(loss, Tensor):
            loss = loss * trainer.accumulate_grad_batches if trainer.accumulate_grad_batches > 1 else loss
        else:
            loss = None
        self._in_batch = False
        self._watch.end_batch(self._moment, optimizer_steps(trainer), loss)
        last = trainer.is_last_batch
        self._short = last and batch_length(batch) < SHORT * self._judge.usual_samples
        if self._watch.recording:
            self._note_facts(trainer, pl_module)
        if self._watch.is_time(self._moment.step, last) and not accumulates(trainer):
            self._look(trainer)

    def _note_facts(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what may be another thing when the step is looked at."""
        self._facts_then[self._moment.step] = {
            "norm_eval": norms_in_eval_mode(pl_module, with_gradient=True),
            "norm_values": self._watch.norm_values,
            "gates": self._watch.gates,
            "samples": self._samples,
            **self._optimizers.facts(),
            **(self._layers.facts(trainer.optimizers, self._watch.in_order) if self._layers is not None else {}),
        }

    @keeps_training
    def _look(self, trainer: Trainer, alone: bool = False) -> None:
        """Fetch what was recorded since the last look, on all ranks unless `alone`, and let the rules look at it."""
        self._watch.steps = optimizer_steps(trainer)
        self._read()
        if not self.active:
            return
        try:
            collected = self._watch.fetch(self._judge.task_numbers, self._failure, alone)
        except DisagreementError as error:  # of all ranks
            self.give_up(str(error))
            return
        self._judge.task_numbers = collected.extra  # rank 0's batches decide
        self._look_at(trainer, collected)

    @keeps_training
    def _read(self) -> None:
        task = self._watch.read()
        if task is not None:
            self._judge.know_task(task)

    @keeps_training
    def _look_at(self, trainer: Trainer, collected: Collected) -> None:
        self._judge.judge(collected.losses, collected.observations, self._facts_then)
        if self.stop and self.verdict == "failing":
            trainer.should_stop = True

    @keeps_training
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget a batch, and what was accumulated, where the LightningModule has skipped the rest of the epoch."""
        if self._in_batch:
            self._in_batch = False
            self._watch.skip_batch(accumulated=pl_module.automatic_optimization)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what is left, and say what the run was like."""
        self._look(trainer)
        self._state = self.state_dict()
        self._end(trainer)
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what led up to it: Lightning calls no other hook then."""
        self.settle(trainer)
        self.end_unfinished(trainer)
        self._look(trainer, alone=True)  # other ranks may be anywhere
        self._end(trainer)
        self._leave()

    def keep_state(self, trainer: Trainer) -> None:
        """Keep the findings of what was looked at until now for checkpoints that are written from now on."""
        if self._state is None:
            self._look(trainer, alone=True)
            self._state = self.state_dict()

    @keeps_training
    def end_unfinished(self, trainer: Trainer) -> None:
        """Take what a batch has left that did not come to its end."""
        if self._in_batch:
            self._in_batch = False
            if self._alone:
                self._watch.end_batch(self._moment, trainer.global_step + 1, None)
            else:
                self._watch.end_unfinished(self._moment)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        self._leave()

    def _end(self, trainer: Trainer) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            if self.active:
                self._judge.close(self._short)
            if trainer.is_global_zero:
                self._publish(trainer)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            rank_zero_warn(f"TrainingDiagnosis cannot say what it found: {type(error).__name__}: {error}")

    def _publish(self, trainer: Trainer) -> None:
        """Write `diagnosis.json`, then show it, and give it to TensorBoard as the text `diagnosis`.

        Nothing is written under `fast_dev_run`.
        """
        content = self._outcome.content(self._modules)
        if self._place is not None:
            write_json(self._place.make(self.folder) / self._outcome.file, content)
        if self.summary:
            show(trainer.print, ["", *brief(content)])
        if not is_trial(trainer):
            add_text(trainer, "diagnosis", lines(content))

    # checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at what is left before it is saved: a run that goes on from there does not see it again."""
        if self.active:
            self._look(trainer)
            checkpoint.setdefault("callbacks", {})[self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Findings and baselines; lists, texts, numbers and tensors only.

        Once the run is over, as before its end was judged: a run that goes on has no such end.
        """
        if self._state is not None:
            return self._state
        folder = None if self._place is None else self._place.name_to_keep(self.folder)
        own = {"recorder": self._watch.state_dict(), "file": self._outcome.file, "folder": folder}
        return self._judge.state_dict() | own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        state_dict = with_new_names(state_dict)
        self._judge.load_state_dict(state_dict)
        self._watch.load_state_dict({"stepped": self._judge.losses.count > 0} | state_dict["recorder"])
        self._outcome.file, self._outcome.resumed = state_dict.get("file", FILE), True
        if self._place is not None:
            self._place.go_on(state_dict.get("folder"))
