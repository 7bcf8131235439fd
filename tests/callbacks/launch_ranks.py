"""Start a script of the tests as two ranks on this machine's CPU, and read what each wrote."""

import json
import os
from pathlib import Path
from typing import Any

import bnlab_callbacks
from tests.helpers.warm_processes import WarmProcess, environments_of_ranks

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120

Ranks = list[dict[str, Any]]


def two_ranks(module: str, folder: Path) -> Ranks:
    """What each rank of `python -m module FILE` wrote into its JSON file."""
    paths = os.pathsep.join([str(ROOT), str(Path(bnlab_callbacks.__file__).parents[1])])
    common = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    started = [
        WarmProcess([str(folder / f"{rank}.json")], folder, common | of_rank, module)
        for rank, of_rank in enumerate(environments_of_ranks(2))
    ]
    try:
        logs = ["".join(process.communicate(TIMEOUT_S)) for process in started]
        codes = [process.returncode for process in started]
    finally:
        for process in started:
            process.kill()
    for rank, log in enumerate(logs):
        (folder / f"{rank}.log").write_text(log)
    assert codes == [0, 0], "\n".join(log[-3000:] for log in logs)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit: JSON writes floats so that they read back exactly, and NaN as such."""
    return json.dumps(a) == json.dumps(b)
