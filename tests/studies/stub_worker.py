"""A worker without torch: it "trains" by adding up numbers, writes a checkpoint at each step, and notes what it did.

Its flags: `--model.steps N` steps of 20 ms each; half-way, `--model.fail TEXT` fails, `--model.fail_once true` fails in
the first attempt, `--model.die N` kills the process with a signal. With STUB_EXIT in the environment it ends with that
status after all is done.
"""

import json
import os
import sys
import time
from pathlib import Path

import yaml

from bnlab.studies.worker import work_on


def fit_and_test(folder: Path, words: list[str]) -> dict[str, float]:
    """Add up the seed and the steps, going on from the checkpoint."""
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    steps, seed = int(flags.get("--model.steps", "3")), int(flags["--seed_everything"])
    note(folder / "starts.txt", str(os.getpid()))
    checkpoint = folder / "checkpoint.json"
    step, total = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, seed)
    first_attempt = step == 0
    while step < steps:
        time.sleep(0.02)
        step, total = step + 1, (total * 3 + step) % 1_000_003
        note(folder / "steps.txt", str(step))
        temporary = folder / ".checkpoint"
        temporary.write_text(json.dumps([step, total]))
        os.replace(temporary, checkpoint)
        if step == steps // 2:
            trouble(flags, first_attempt)
    outcome = {"status": "finished", "epochs": step, "steps": step}
    (folder / "run.yaml").write_text(yaml.safe_dump({"outcome": outcome, "val_acc": float("nan")}))
    return {"test_acc": float(total), "test_loss": float("inf")}


def note(file: Path, line: str) -> None:
    """Append a line."""
    with file.open("a") as opened:
        opened.write(f"{line}\n")


def trouble(flags: dict[str, str], first_attempt: bool) -> None:
    """Fail if the flags say so."""
    if "--model.fail" in flags:
        raise RuntimeError(flags["--model.fail"])
    if "--model.fail_once" in flags and first_attempt:
        raise RuntimeError("only the first time")
    if "--model.die" in flags:
        os.kill(os.getpid(), int(flags["--model.die"]))


if __name__ == "__main__":
    sys.exit(work_on(sys.argv[1:], fit_and_test) or int(os.environ.get("STUB_EXIT", "0")))
