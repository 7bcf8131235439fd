"""The ranks that a command launches: they end when it does, even if it is killed before the ranks are connected.

Once they are connected, a closed connection ends them; before that they would wait for torch's 30 minutes.
"""

import os
import sys
import threading
import time

_LAUNCHER = "BNLAB_LAUNCHER"  # process id
_LOOK_S = 0.5
_GRACE_S = 10.0  # at the end of a run the launcher may be the first to go


def end_with_launcher() -> None:
    """In a rank that another process of bnlab started: watch that process. In any: be the one that is watched.

    Ranks that torchrun, SLURM or a person starts are theirs to end. On Windows, where a process does not lose its
    parent, nothing is watched.
    """
    launcher = os.environ.get(_LAUNCHER)
    rank = os.environ.get("LOCAL_RANK", "0")
    if launcher is not None and rank != "0" and os.name == "posix":
        if os.getppid() != int(launcher):
            _end(launcher)
        threading.Thread(target=_watch, args=(launcher,), name="bnlab-launcher-watch", daemon=True).start()
    os.environ[_LAUNCHER] = str(os.getpid())


def _watch(launcher: str) -> None:
    while os.getppid() == int(launcher):
        time.sleep(_LOOK_S)
    time.sleep(_GRACE_S)
    _end(launcher)


def _end(launcher: str) -> None:
    rank = os.environ.get("LOCAL_RANK")
    sys.stderr.write(
        f"bnlab: process {launcher}, which started rank {rank} of this machine, is gone; so this rank ends\n"
    )
    sys.stderr.flush()
    os._exit(1)  # from a thread, whatever the main one is waiting for
