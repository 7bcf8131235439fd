"""Small trainings with faults on purpose, and counts of what `TrainingDiagnosis` says of them and of healthy ones.

    python -m benchmarks.fault_matrix [--root FOLDER_WITH_MNIST] [--part tune|held_out|unseen] [--jobs 2]

Writes a JSON line for each run to `--out` and goes on from there when it is started again; prints the tables in
Markdown, and with `--complaints` each run that the diagnosis got wrong. Whether a run failed is decided by its end: not
finite, or scored on held-out data (accuracy; R² where a number is learned) lower than halfway between chance and its
control, the sound run of the same net, optimizer, data and seed. Thresholds may be chosen on the part `tune` (seeds 0
and 1); `held_out` (other seeds) and `unseen` (other nets) are for the report. Without --root the digits are the only
images.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from benchmarks.fault_matrix.runs import Task, perform, tasks
from benchmarks.fault_matrix.scores import Outcomes, Run, complaints, table, task_of

PARTS = ("tune", "held_out", "unseen")


def read_runs(path: Path) -> list[Run]:
    """The runs that are done; those that ended in an error are made again."""
    if not path.exists():
        return []
    runs = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [run for run in runs if "error" not in run]


def perform_all(chosen: Sequence[Task], options: argparse.Namespace, runs: list[Run]) -> None:
    """Do the runs in several processes, each written as soon as it is done."""
    context = get_context("spawn")  # a forked process would inherit torch's threads
    with options.out.open("a") as file, ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        root = str(options.root or ".")
        waiting = [pool.submit(perform, task, root, not options.without_diagnosis) for task in chosen]
        for number, future in enumerate(as_completed(waiting), start=1):
            runs.append(future.result())
            file.write(json.dumps(runs[-1]) + "\n")
            file.flush()
            print(f"{number}/{len(chosen)} {task_of(runs[-1])} {runs[-1]['seconds']} s", file=sys.stderr, flush=True)


def main() -> None:
    """Do what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with MNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("fault_matrix.jsonl"))
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--seeds", type=int, default=3, help="of the faults and healthy kinds")
    parser.add_argument("--healthy_seeds", type=int, default=8, help="of the controls")
    parser.add_argument("--first_seed", type=int, default=0, help="leave out runs of smaller seeds")
    parser.add_argument("--only", default="", help="a regular expression for fault/net/optimizer/data/seed")
    parser.add_argument("--limit", type=int, help="make so many runs at most")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--without_diagnosis", action="store_true")
    parser.add_argument("--complaints", action="store_true")
    parser.add_argument("--list", action="store_true", help="count the runs, and make none")
    options = parser.parse_args()
    grid = tasks(options.seeds, options.healthy_seeds, ("digits", "mnist") if options.root else ("digits",))
    wanted = [t for t in grid if options.part in (None, t.part) and t.seed >= options.first_seed]
    chosen = [t for t in wanted if re.search(options.only, str(t))]
    runs = read_runs(options.out)
    done = {task_of(run) for run in runs}
    missing = [task for task in chosen if task not in done][: options.limit]
    if options.list:
        print(f"{len(chosen)} runs, {len(missing)} missing; {Counter((t.part, t.healthy) for t in chosen)}")
        return
    perform_all(missing, options, runs)
    outcomes = Outcomes(runs)
    for part in PARTS:
        if any(task.part == part for task in outcomes.runs):
            print(f"\n## {part.replace('_', ' ').capitalize()}\n\n{table(outcomes, part)}")
            print(f"\n{complaints(outcomes, part)}" if options.complaints else "")
    print(f"{sum(run['seconds'] for run in runs) / 60:.1f} minutes of one core for {len(runs)} runs")


if __name__ == "__main__":
    main()
