"""Rules about schedules of the learning rate: built for another number of steps, or down at nothing too early.

All compare what a schedule says of itself with the number of steps that the run is to have, and are silent where either
is not known. No healthy run of the fault matrix, or of the repaired programs of forums, comes near.
"""

from collections.abc import Iterator

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import History, OptimizerState, Schedule
from bnlab_callbacks.diagnosis.rules.advice import advice
from bnlab_callbacks.diagnosis.rules.rule import Rule

_BEYOND = 2.0  # × the run
_LONG = 300  # steps of a run that is no trial
_MANY = 5.0  # × the epochs
_NEAR = 0.05
_LEFT, _LASTED, _AT_ZERO = 0.2, 0.1, 10
_WAITS, _TENTH = 20, 0.1


def stepped_by_epoch(history: History) -> Verdict | None:
    """A schedule made for optimizer steps that makes a step at the end of an epoch, as Lightning does by default.

    It reaches its largest rate at twice the run's number of steps or later; it rises, and half of the run has not
    brought it to a tenth of its base; or it began at nothing (below a ten-thousandth of it), and is still there after
    20 steps of a run of up to ten epochs.
    """
    run, epoch = history.facts.run_steps, history.facts.epoch_steps
    for state, schedule in _scheduled(history):
        if not run or not epoch or not schedule.by_epoch or state.rate is None:
            continue
        each = f"{schedule.name} is stepped {_times(schedule)}"
        peak = _peak_at(schedule, epoch)
        if peak is not None and peak >= _BEYOND * run:
            return Verdict(
                f"{_rate(state, history, run)}, scheduled to reach its peak{_of(schedule)} at step {peak:,}: {each}"
            )
        rises = state.began is not None and state.began < state.rate == state.highest
        if rises and state.held_back_to(_TENTH) and 2 * history.now.step >= run:
            return Verdict(f"{_rate(state, history, run)}, and still rises to {state.base:.3g}: {each}")
        if state.nothing_since == history.first.step and history.now.step >= _WAITS and run <= 10 * epoch:
            return Verdict(f"{_rate(state, history, run)}, and has been so from the first one on: {each}")
    return None


def annealed_by_epoch(history: History) -> Verdict | None:
    """A schedule whose length is the run's number of steps (within 5 %), which makes one step an epoch.

    It hardly gets anywhere: the rate stays near where it begins. At least ten times as many steps as epochs, and no
    peak to come: that is `stepped_by_epoch`.
    """
    run, epoch = history.facts.run_steps, history.facts.epoch_steps
    for _, schedule in _scheduled(history):
        if not run or not epoch or not schedule.by_epoch or not schedule.length or schedule.peak is not None:
            continue
        made = run / (epoch * schedule.every)
        if abs(schedule.length - run) <= _NEAR * run and schedule.length >= 2 * _MANY * max(made, 1):
            return Verdict(
                f"{schedule.name} is made for {schedule.length:,} steps, but is stepped {_times(schedule)}, "
                f"{max(round(made), 1)} times in this run of {run:,} steps"
            )
    return None


def stepped_by_batch(history: History) -> Verdict | None:
    """A schedule whose length is the run's number of epochs, made a step of after each batch; ten times as many steps.

    It falls to nothing within the first of them, or, made of a cosine, goes up and down all the time.
    """
    run, epoch = history.facts.run_steps, history.facts.epoch_steps
    for state, schedule in _scheduled(history):
        if not run or not epoch or schedule.by_epoch or not schedule.length or state.rate is None:
            continue
        epochs = round(run / epoch)
        if schedule.length == epochs > 1 and run >= 2 * _MANY * epochs * schedule.every:
            return Verdict(
                f"{schedule.name} is made for {epochs} steps, as many as the run has epochs, but is stepped "
                f"{_times(schedule)}, {run:,} times"
            )
    return None


def warms_up_too_long(history: History) -> Verdict | None:
    """A schedule of optimizer steps whose rate is highest at twice the run's number of steps or later.

    A note in runs of fewer than 300 steps: they may be a trial of a longer one.
    """
    run = history.facts.run_steps
    for state, schedule in _scheduled(history):
        peak = _peak_at(schedule, history.facts.epoch_steps)
        if not run or peak is None or schedule.by_epoch or state.rate is None or peak < _BEYOND * run:
            continue
        what = f"{_rate(state, history, run)}, scheduled to reach its peak{_of(schedule)} at step {peak:,}"
        return Verdict(what, severity="note" if run < _LONG else "warning")
    return None


def decayed_too_early(history: History) -> Verdict | None:
    """The rate is below a ten-thousandth of its highest, and was so with a fifth of the run and more to come.

    It has been so for a tenth of the run; or for ten steps, where it is exactly 0 and of no schedule that is known to
    come back. A schedule that waits for the loss (`ReduceLROnPlateau`) may be right: only above half of chance.
    """
    run, step = history.facts.run_steps, history.now.step
    for state in history.facts.optimizers:
        since, kind = state.nothing_since, state.schedule.name if state.schedule else ""
        if not run or state.rate is None or since is None or since == history.first.step:
            continue
        waits = _AT_ZERO if state.rate == 0 and not (state.schedule and state.schedule.returns) else _LASTED * run
        if step - since < waits or run - since - waits < _LEFT * run or ("Plateau" in kind and not history.unlearned()):
            continue
        by = f": {kind} is stepped {_times(state.schedule)}" if state.schedule else ""
        return Verdict(
            f"{_rate(state, history, run)}, down from {state.highest:.3g}, and has been near 0 since step {since}{by}",
            since=since,
        )
    return None


def _scheduled(history: History) -> Iterator[tuple[OptimizerState, Schedule]]:
    return ((state, state.schedule) for state in history.facts.optimizers if state.schedule is not None)


def _peak_at(schedule: Schedule, epoch: int | None) -> int | None:
    """The optimizer step at which the rate is highest."""
    if schedule.peak is None or (schedule.by_epoch and not epoch):
        return None
    return schedule.peak * schedule.every * (epoch or 1 if schedule.by_epoch else 1)


def _rate(state: OptimizerState, history: History, run: int) -> str:
    return f"the learning rate is {state.rate:.3g} at step {history.now.step:,} of {run:,}"


def _of(schedule: Schedule) -> str:
    return "" if schedule.peak_rate is None else f" of {schedule.peak_rate:.3g}"


def _times(schedule: Schedule) -> str:
    unit = "epoch" if schedule.by_epoch else "batch"
    return (
        f"once every {schedule.every} {unit}s"
        if schedule.every > 1
        else f"once {'an' if schedule.by_epoch else 'a'} {unit}"
    )


SCHEDULE_RULES = (
    Rule("learning_rate_too_low", stepped_by_epoch, "warning", advice("schedule_by_step"), patience=5),
    Rule("learning_rate_too_low", warms_up_too_long, "warning", advice("schedule_for_this_run"), patience=5),
    Rule("learning_rate_too_low", decayed_too_early, "warning", advice("schedule_for_this_run", "schedule_interval")),
    Rule("schedule_of_another_length", annealed_by_epoch, "warning", advice("schedule_by_step"), patience=5),
    Rule("schedule_of_another_length", stepped_by_batch, "warning", advice("schedule_by_epoch"), patience=5),
)
