"""`bnlab study`: a grid of runs from one command line or one YAML file."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bnlab.cli.study_options import Options, read_options
from bnlab.errors import InputError
from bnlab.studies.display import LiveDisplay, PlainLines, duration, end, print_text, table
from bnlab.studies.estimate import Estimate, from_results, shared_out, time_left
from bnlab.studies.grid import Grid, Run, check_names, expand
from bnlab.studies.local_engine import LocalEngine, default_jobs, this_machine
from bnlab.studies.study import Engine, State, begin, run_study
from bnlab.studies.study_folder import check_reuse, write_study

if TYPE_CHECKING:
    from bnlab.cli.study_settings import Checker

_WORKER = "bnlab.cli.study_run"
_INTERRUPTED = 130  # the status of a program that Ctrl-C ended


@dataclass
class Plan:
    """The runs of a study, the grids they come from, and what has checked each."""

    grids: list[Grid]
    runs: list[Run]
    checkers: dict[str, Checker]  # by the run's name


def run(words: list[str]) -> None:
    """Run the command, given as words."""
    options = read_options(words[1:])
    plan = make_plan(options)
    settings = {run.name: plan.checkers[run.name].resolved(run) for run in plan.runs}
    for note in check_reuse(options.folder, plan.runs, settings):
        print(f"note: {note}")
    state = begin(options.folder, plan.runs, options.retry_failed)
    if options.dry_run:
        print("\n".join(dry_run(state, plan, _local_engine(options, state, plan))))
        return
    for checker in dict.fromkeys(plan.checkers.values()):
        checker.prepare([run for run in state.waiting if plan.checkers[run.name] is checker])
    try:
        write_study(options.folder, plan.grids)
    except OSError as error:
        raise InputError(
            f"the study's folder {options.folder} cannot be written ({error.strerror}); give another --root_dir."
        ) from error
    try:
        if state.waiting:
            _show_and_run(state, _engine(options, state, plan))
    except KeyboardInterrupt:
        print(f"\nstopped; {len(state.results)} of {state.total} runs are done. The same command goes on from here:")
        print(f"  bnlab {shlex.join(words)}")
        raise SystemExit(_INTERRUPTED) from None
    print("\n".join(end(state)))
    if state.failed:
        raise SystemExit(1)


def make_plan(options: Options) -> Plan:
    """The runs that the options ask for, checked as far as can be without training.

    Raises:
        ArgumentError, InputError: a flag, config or dataset cannot be used.
    """
    from bnlab.cli.study_settings import Checker  # torch and Lightning take seconds

    plan = Plan([], [], {})
    for given in options.grids:
        checker = Checker(given.overrides)
        experiments = {config: checker.experiment(config) for config in given.configs}
        grid = replace(given, overrides=checker.typed_overrides())
        runs = expand(grid, experiments)
        checker.check(runs)
        plan.grids.append(grid)
        plan.runs += runs
        plan.checkers |= {run.name: checker for run in runs}
    plan.runs = check_names(plan.runs)
    return plan


def _local_engine(options: Options, state: State, plan: Plan) -> LocalEngine:
    machine = this_machine(any(checker.device.type == "cuda" for checker in plan.checkers.values()))
    return LocalEngine(_WORKER, options.jobs or default_jobs(machine, len(state.waiting)), machine)


def _engine(options: Options, state: State, plan: Plan) -> Engine:
    if options.engine == "local":
        return _local_engine(options, state, plan)
    from bnlab.studies.ray_engine import RayEngine

    return RayEngine(_WORKER, options.ray_address, options.jobs, options.ray_gpus, len(state.waiting))


def _show_and_run(state: State, engine: Engine) -> None:
    console = Console()
    how = f"{engine.jobs} at once ({engine.name}), {engine.threads} thread{'s' * (engine.threads > 1)} each"
    print_text(console, f"study {state.folder}: {state.total} runs, {len(state.results)} of them done; {how}")
    left = partial(time_left, jobs=engine.jobs)
    watcher = LiveDisplay(console, left) if console.is_terminal else PlainLines(console, left)
    with _terminable(), watcher if isinstance(watcher, LiveDisplay) else nullcontext():
        run_study(state, engine, watcher)


def dry_run(state: State, plan: Plan, engine: LocalEngine) -> list[str]:
    """Every run, where it stands, and how long it may take, as lines of text."""
    measured: dict[tuple[Any, ...], Estimate] = {}

    def estimate(run: Run) -> Estimate:
        found = from_results(run, state.results.values())
        if found is not None:
            return found
        kind = (run.architecture, run.dataset, run.batch_norm, run.batch_size, run.max_epochs)
        if kind not in measured:
            measured[kind] = plan.checkers[run.name].measured(run, engine.threads)
        return measured[kind]

    rows, seconds = [["run", "state", "time", "how that is known"]], []
    for run in plan.runs:
        if run.name in state.results:
            rows.append([run.name, state.results[run.name]["outcome"]["status"], "", "result.json"])
            continue
        found = estimate(run)
        seconds.append(found.seconds)
        begun = "goes on" if (state.folder / run.name / "checkpoints").is_dir() else "new"
        rows.append([run.name, begun, duration(found.seconds), found.source])
    total = f"{len(seconds)} of {len(plan.runs)} runs to do"
    if seconds:
        total += f": about {duration(shared_out(seconds, engine.jobs))}, {engine.jobs} at once"
    return [*table(rows), "", total]


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM what Ctrl-C is."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
