"""A worker without torch: it `trains` by adding numbers, writes a checkpoint at each step, and notes what it did.

`--model.steps N` steps of 20 ms each; `--model.fail TEXT` fails half-way; `--model.die N` kills itself with a signal;
`--model.fail_once true` fails in its first attempt.
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
    with (folder / "starts.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    checkpoint = folder / "checkpoint.json"
    step, total = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, seed)
    first = step == 0
    while step < steps:
        time.sleep(0.02)
        step, total = step + 1, total * 3 + step
        temporary = folder / ".checkpoint"
        temporary.write_text(json.dumps([step, total]))
        os.replace(temporary, checkpoint)
        with (folder / "steps.txt").open("a") as file:
            file.write(f"{step}\n")
        if step > steps / 2 and "--model.fail" in flags:
            raise RuntimeError(flags["--model.fail"])
        if step > steps / 2 and "--model.fail_once" in flags and first:
            raise RuntimeError("only the first time")
        if step > steps / 2 and "--model.die" in flags:
            os.kill(os.getpid(), int(flags["--model.die"]))
    outcome = {"status": "finished", "epochs": step, "steps": step}
    (folder / "run.yaml").write_text(yaml.safe_dump({"outcome": outcome, "val_acc": float("nan")}))
    return {"test_acc": float(total), "test_loss": float("inf")}


if __name__ == "__main__":
    sys.exit(work_on(sys.argv[1:], fit_and_test))
