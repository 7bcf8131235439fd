"""Scores of the diagnosis over all runs: recall, names, places and times for each fault, and false alarms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks.fault_matrix.aims import AIMS, Aim
from benchmarks.fault_matrix.faults import ALL_NETS, FAULTS, IMAGE_NETS
from benchmarks.fault_matrix.healthy import HEALTHY
from benchmarks.fault_matrix.more_nets import BINARY, VALUES, WIDE, ZEROS
from benchmarks.fault_matrix.nets import SLOW
from benchmarks.fault_matrix.runs import CONTROL, Task

Run = dict[str, Any]
Share = tuple[int, int]
VANISHING = ("init N(0,1e-4^2)", "deep sigmoid", "deep tanh, gain 0.2")


def task_of(run: Run) -> Task:
    """Which run it is."""
    return Task(*(run[name] for name in Task._fields))


def aim_of(task: Task) -> Aim:
    """What its net is trained for."""
    return AIMS[(ALL_NETS | SLOW)[task.net].aim]


class Outcomes:
    """Which runs failed, by their ends alone."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = {task_of(run): run for run in runs}

    def sound(self, task: Task) -> bool:
        """Whether a healthy run was one: it learned, or is a slow starter and stayed finite."""
        run = self.runs.get(task, {})
        if not run.get("finite"):
            return False
        return task.net in SLOW or bool(run["score"] >= aim_of(task).sound)

    def failed(self, task: Task) -> bool | None:
        """Not finite, or less than half of the control's way from chance; None without a sound control."""
        run = self.runs[task]
        if "error" in run or not self.sound(task.control):
            return None
        halfway = (aim_of(task).chance + self.runs[task.control]["score"]) / 2
        return not run["finite"] or bool(run["score"] < halfway)


def alarms(run: Run) -> list[dict[str, Any]]:
    """Findings that a person would act on."""
    return [finding for finding in run["findings"] if finding["severity"] in ("failing", "warning")]


def rightly_named(run: Run, among: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that call the fault by a right name."""
    return [finding for finding in among if finding["name"] in FAULTS[run["fault"]].names]


def rightly_placed(run: Run, among: Sequence[dict[str, Any]]) -> bool:
    """Whether one of them is at the layer with the fault, or within it."""
    places = run["layers"]
    names = [(finding["layer"] or "").removeprefix("net.") for finding in among]
    return any(name == place or name.startswith(f"{place}.") for name in names for place in places)


def first_alarm(run: Run) -> int | None:
    """The step at which the first one was said."""
    return min((finding["noticed"] for finding in alarms(run)), default=None)


class Scores:
    """Counts over the runs of one fault, or of several."""

    def __init__(self, failed: Sequence[Run], survived: Sequence[Run]) -> None:
        self.failed, self.survived = failed, survived
        self.alarmed = [run for run in failed if alarms(run)]
        self.named = [run for run in self.alarmed if rightly_named(run, alarms(run))]

    @property
    def recall(self) -> Share:
        """Failed runs with an alarm."""
        return len(self.alarmed), len(self.failed)

    @property
    def name(self) -> Share:
        """Of those, the ones whose alarms have a right name among them."""
        return len(self.named), len(self.alarmed)

    @property
    def place(self) -> Share:
        """Of those, the ones with the right layer, where a layer was made faulty."""
        return _placed([run for run in self.named if run["layers"]])

    @property
    def steps(self) -> str:
        """Median and largest step of the first alarm."""
        steps = [step for run in self.alarmed if (step := first_alarm(run)) is not None]
        return f"{median(steps):g} ({max(steps)})" if steps else "-"

    @property
    def told(self) -> Share:
        """Survivors of which the fault was named, also in a note."""
        return sum(bool(rightly_named(run, run["findings"])) for run in self.survived), len(self.survived)

    @property
    def told_where(self) -> Share:
        """Of those, the ones with the right layer, where a layer was made faulty."""
        return _placed([run for run in self.survived if run["layers"] and rightly_named(run, run["findings"])])

    @property
    def condemned(self) -> Share:
        """Survivors with a failing verdict."""
        return _count(self.survived, "failing"), len(self.survived)


def table(outcomes: Outcomes, part: str) -> str:
    """The report in Markdown."""
    chosen = [task for task in outcomes.runs if task.part == part and "error" not in outcomes.runs[task]]
    lines = [
        "| fault | runs | failed | recall | right name | right layer | first alarm, median (max) "
        "| survivors: named | right layer | *failing* |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    everything = Scores([], [])
    for fault in FAULTS:
        of_it = [task for task in chosen if task.fault == fault]
        if not of_it:
            continue
        scores = _scores(outcomes, of_it)
        everything = Scores([*everything.failed, *scores.failed], [*everything.survived, *scores.survived])
        lines.append(_row(fault, scores))
    lines += [_row("**all**", everything), "", "| healthy | runs | *failing* | *warning* |", "|---|---:|---:|---:|"]
    controls = {
        "controls": IMAGE_NETS,
        "slow starters": SLOW,
        "controls, a number": VALUES,
        "controls, two classes": BINARY,
        "controls, zeros at first": ZEROS,
        "controls, wide": WIDE,
    }
    kinds = {
        name: [task for task in chosen if task.fault == CONTROL and task.net in nets] for name, nets in controls.items()
    }
    kinds |= {name: [task for task in chosen if task.fault == name] for name in HEALTHY}
    kinds["**all**"] = [task for task in chosen if task.healthy]
    for kind, of_it in kinds.items():
        runs = [outcomes.runs[task] for task in of_it if outcomes.sound(task)]
        if not of_it:
            continue
        failing, warned = ((_count(runs, severity), len(runs)) for severity in ("failing", "warning"))
        lines.append(f"| {kind} | {len(runs)} | {_share(failing)} | {_share(warned)} |")
    lines += ["", _soon("Explosions", 5, [run for run in everything.failed if run["exploded"] is not None])]
    lines += [_soon("Vanishing", 20, [run for run in everything.failed if run["fault"] in VANISHING])]
    dropped = sum(1 for t in chosen if (not outcomes.sound(t) if t.healthy else outcomes.failed(t) is None))
    errors = sum("error" in run for task, run in outcomes.runs.items() if task.part == part)
    return "\n".join(
        [*lines, "", f"Left out: {dropped} runs without a sound control, {errors} that ended in an error."]
    )


def _soon(what: str, limit: int, runs: Sequence[Run]) -> str:
    """How many of the runs have an alarm, by a right name, at most `limit` steps after the loss went out of bounds."""
    delays = []
    for run in runs:
        steps = [finding["noticed"] for finding in rightly_named(run, alarms(run))]
        if steps:
            delays.append(min(steps) - (run["exploded"] or 0))
    soon = sum(delay <= limit for delay in delays)
    latest = f", the latest after {max(delays)}" if delays else ""
    return f"{what} in {len(runs)} failed runs: {soon} named within {limit} steps{latest}."


def complaints(outcomes: Outcomes, part: str) -> str:
    """Each run of a part that the diagnosis got wrong, with everything that it said."""
    lines = []
    for task, run in outcomes.runs.items():
        if task.part == part and (wrong := _complaint(outcomes, task, run)):
            lines.append(f"- **{wrong}**: `{task}`, score {run.get('score')}, losses {run.get('losses')}")
            lines += [f"    - {run['error'].strip().splitlines()[-1]}"] if "error" in run else []
            lines += [f"    - {_said(finding)}" for finding in run.get("findings", ())]
    return "\n".join(lines)


def _said(finding: dict[str, Any]) -> str:
    what = f"{finding['severity']} {finding['name']} at {finding['layer']}"
    when = f"{finding['since']} to {finding['ended']}"
    return f"{what}, steps {when}, said at {finding['noticed']}: {finding['evidence']}"


def _complaint(outcomes: Outcomes, task: Task, run: Run) -> str | None:
    if "error" in run:
        return "error"
    if task.healthy:
        if not outcomes.sound(task):
            return "no sound control"
        return "false alarm" if alarms(run) else None
    failed = outcomes.failed(task)
    named = rightly_named(run, alarms(run))
    if not failed:
        return "failing verdict on a survivor" if failed is False and _count([run], "failing") else None
    if not alarms(run):
        return "missed"
    if not named:
        return "wrong name"
    return "wrong layer" if run["layers"] and not rightly_placed(run, named) else None


def _scores(outcomes: Outcomes, chosen: Sequence[Task]) -> Scores:
    ends = {task: outcomes.failed(task) for task in chosen}
    return Scores(*([outcomes.runs[task] for task in chosen if ends[task] is end] for end in (True, False)))


def _row(fault: str, s: Scores) -> str:
    alarmed, survived = (
        " | ".join(map(_share, shares)) for shares in ((s.recall, s.name, s.place), (s.told, s.told_where, s.condemned))
    )
    runs = len(s.failed) + len(s.survived)
    return f"| {fault} | {runs} | {len(s.failed)} | {alarmed} | {s.steps} | {survived} |"


def _placed(runs: Sequence[Run]) -> Share:
    return sum(rightly_placed(run, rightly_named(run, run["findings"])) for run in runs), len(runs)


def _count(runs: Iterable[Run], severity: str) -> int:
    return sum(any(finding["severity"] == severity for finding in run["findings"]) for run in runs)


def _share(share: Share) -> str:
    part, whole = share
    return f"{part}/{whole}" + (f" ({part / whole:.0%})" if whole else "") if whole else "-"
