"""Start a script of the tests as two ranks on this machine's CPU, and read what each wrote."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import bnlab_callbacks

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120

Ranks = list[dict[str, Any]]


def two_ranks(module: str, folder: Path) -> Ranks:
    """What each rank of `python -m module FILE` wrote into its JSON file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(bnlab_callbacks.__file__).parents[1])]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "WORLD_SIZE": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }
    started = []
    try:
        for rank in range(2):
            with (folder / f"{rank}.log").open("w") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module, str(folder / f"{rank}.json")],
                        env={**common, "LOCAL_RANK": str(rank)},
                        cwd=folder,
                        stdout=log,
                        stderr=log,
                    )
                )
        codes = [process.wait(TIMEOUT_S) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    logs = "\n".join((folder / f"{rank}.log").read_text()[-3000:] for rank in range(2))
    assert codes == [0, 0], logs
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit: JSON writes floats so that they read back exactly, and NaN as such."""
    return json.dumps(a) == json.dumps(b)
