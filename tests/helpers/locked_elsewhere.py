"""A run's lock in the hands of another process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bnlab.files.run_lock import is_locked

PROJECT = Path(__file__).parents[2]
HOLD = (
    "import sys, time; from pathlib import Path; from bnlab.files.run_lock import locked\n"
    "with locked(Path(sys.argv[1])) as held:\n"
    "    print(held, flush=True); time.sleep(60)"
)


@contextmanager
def locked_elsewhere(folder: Path) -> Iterator[None]:
    """Have another process hold a run's lock; at the end it is killed."""
    paths = os.pathsep.join([str(PROJECT), str(PROJECT / "callbacks")])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        with process.stdout as output:
            assert output.readline().strip() == b"True"
        assert is_locked(folder)
        yield
    finally:
        process.kill()
        process.wait()
