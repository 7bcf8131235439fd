"""The engine `local`: a process of its own for each run, several at once, with cores and GPUs shared out."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bnlab.errors import InputError
from bnlab.studies.worker import Ended, start

# what a run needs at most of a GPU's and of the machine's memory, with all that torch takes besides
_GPU_BYTES_PER_RUN = 3 << 30
_BYTES_PER_RUN = 3 << 29
_RUNS_PER_GPU = 4  # more small runs on one GPU do not end sooner

_GRACE_S = 10.0  # for workers that are asked to end

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Machine:
    """What there is to share out: cores that this process may use, bytes of memory, bytes of each GPU."""

    cores: int
    memory: int
    gpus: tuple[int, ...] = ()


def this_machine(use_gpus: bool) -> Machine:
    """Look at the machine; `use_gpus` False leaves its GPUs alone."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _memory()
    gpus: tuple[int, ...] = ()
    if use_gpus:
        import torch

        # properties, not mem_get_info, which would take some memory of each GPU itself
        gpus = tuple(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(torch.cuda.device_count()))
    return Machine(cores, memory, gpus)


def _memory() -> int:
    """The machine's memory in bytes."""
    if sys.platform == "win32":
        import ctypes

        kilobytes = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
        return kilobytes.value << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def default_jobs(machine: Machine, runs: int) -> int:
    """How many runs at once: as many as cores (on GPUs: cores, GPU memory and speed) and memory allow, at least 1."""
    fit = min(machine.cores, machine.memory // _BYTES_PER_RUN, runs)
    if machine.gpus:
        fit = min(fit, sum(max(1, min(_RUNS_PER_GPU, size // _GPU_BYTES_PER_RUN)) for size in machine.gpus))
    return max(1, fit)


class LocalEngine:
    """Starts workers on this machine, at most `jobs` at once.

    Args:
        worker: the module that is the worker.
        jobs: how many runs at once.
        machine: what is shared out: each job gets its share of the threads, and the GPU that has the fewest.
    """

    name = "local"

    def __init__(self, worker: str, jobs: int, machine: Machine) -> None:
        if jobs < 1:
            raise InputError(f"--jobs {jobs}: it must be 1 or more.")
        self.jobs = jobs
        self.threads = max(1, machine.cores // jobs)
        self._worker = worker
        self._gpus = len(machine.gpus)
        self._processes: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}  # by slot

    @property
    def free(self) -> bool:
        """Whether one more run can start."""
        return len(self._processes) < self.jobs

    def start(self, name: str, task: Mapping[str, Any]) -> None:
        """Start a worker on a run."""
        slot = next(slot for slot in range(self.jobs) if slot not in self._processes)
        variables = environment(slot, self.threads, self._gpus)
        self._processes[slot] = (name, start(self._worker, task, variables))

    def ended(self) -> list[Ended]:
        """Runs whose processes have ended since the last call."""
        found = []
        for slot, (name, process) in list(self._processes.items()):
            status = process.poll()
            if status is not None:
                self._forget(slot)
                found.append(Ended(name, status))
        return found

    def stop(self) -> None:
        """Ask the workers to write a checkpoint and end; after a few seconds, or a second Ctrl-C, end them at once."""
        processes = [process for _, process in self._processes.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _GRACE_S
        try:
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
                process.wait()
            for slot in list(self._processes):
                self._forget(slot)

    def _forget(self, slot: int) -> None:
        _, process = self._processes.pop(slot)
        assert process.stdin is not None
        process.stdin.close()


def environment(slot: int, threads: int, gpus: int) -> dict[str, str]:
    """The environment variables of the job in a slot, its GPU among them where there are any."""
    variables = process_variables(threads)
    if gpus:
        visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
        devices = visible or [str(index) for index in range(gpus)]
        variables["CUDA_VISIBLE_DEVICES"] = devices[slot % gpus]
    return variables


def process_variables(threads: int) -> dict[str, str]:
    """The environment variables of a job's process: its threads, and a log in the order of what happens."""
    return {**dict.fromkeys(_THREAD_VARIABLES, str(threads)), "PYTHONUNBUFFERED": "1"}
