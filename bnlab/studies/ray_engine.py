"""The engine `ray`: for a Ray cluster of several machines; it starts the same workers, and others where some die."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnlab.errors import InputError
from bnlab.studies.local_engine import process_variables
from bnlab.studies.worker import Ended, start

RETRIES = 3  # how often Ray tries a run anew whose Ray worker died
_GPU_SHARE = 0.25


class RayEngine:
    """Starts workers as tasks of a Ray cluster; all its machines must see the study's folder under the same path.

    Args:
        worker: the module that is the worker.
        address: of a cluster that is there, or `auto`; None starts one on this machine, which ends with the study.
        jobs: how many runs at once; None for as many as the cluster's cores and GPUs allow.
        gpus: the share of a GPU that a run takes; None for a quarter where the cluster has GPUs.
        limit: at most so many jobs, the number of runs.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """

    name = "ray"

    def __init__(self, worker: str, address: str | None, jobs: int | None, gpus: float | None, limit: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it asks for nothing outside unless a person says so
        try:
            import ray
        except ImportError as error:
            raise InputError("--engine ray needs Ray: pip install 'bnlab[ray]'.") from error
        self._ray: Any = ray
        if address is not None:
            _check_address(address)
        self._worker = worker
        try:
            self._ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level="ERROR",
                include_dashboard=None if address else False,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"--ray_address {address}: no Ray cluster answers there ({error}). If it asks for a token, as those "
                "that `ray start` makes may, set RAY_AUTH_MODE=token in the environment."
            ) from error
        resources = self._ray.cluster_resources()
        cores, there = int(resources.get("CPU", 1)), resources.get("GPU", 0.0)
        self._gpus = (_GPU_SHARE if gpus is None else gpus) if there else 0.0
        fit = min(cores, int(there / self._gpus)) if self._gpus else cores
        self.jobs = jobs or max(1, min(fit, limit))
        # no more than one machine has: a task never spans two
        largest = max(int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"])
        self.threads = max(1, min(cores // self.jobs, largest))
        share = min(self.threads, cores / self.jobs)
        self._work = self._ray.remote(num_cpus=share, num_gpus=self._gpus, max_retries=RETRIES)(work)
        self._runs: dict[Any, str] = {}  # by the task's reference

    @property
    def free(self) -> bool:
        """Whether one more run can start."""
        return len(self._runs) < self.jobs

    def start(self, name: str, task: Mapping[str, Any]) -> None:
        """Hand a run to the cluster."""
        reference = self._work.remote(self._worker, dict(task), os.getcwd(), process_variables(self.threads))
        self._runs[reference] = name

    def ended(self) -> list[Ended]:
        """Runs that have ended since the last call; a worker that died too often counts as killed."""
        if not self._runs:
            return []
        ready, _ = self._ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0, fetch_local=False)
        return [self._ended(reference) for reference in ready]

    def _ended(self, reference: Any) -> Ended:
        name = self._runs.pop(reference)
        try:
            return Ended(name, int(self._ray.get(reference)))
        except self._ray.exceptions.WorkerCrashedError:
            return Ended(name, -9)  # as if by SIGKILL, which Windows does not have
        except self._ray.exceptions.RayError as error:
            return Ended(name, 1, f"Ray could not run it: {str(error).strip().splitlines()[-1]}")

    def stop(self) -> None:
        """End the runs that are working, and the cluster if it is the study's own."""
        for reference in self._runs:
            self._ray.cancel(reference, force=True)
        self._runs.clear()
        self._ray.shutdown()


def work(worker: str, task: Mapping[str, Any], folder: str, variables: Mapping[str, str]) -> int:
    """Run a worker to its end and return its status; on the cluster, in the folder where the study was started."""
    process = start(worker, task, variables, Path(folder))
    try:
        return process.wait()
    finally:
        process.kill()


def _check_address(address: str) -> None:
    """Raise InputError where nothing answers; Ray itself would try for minutes. `auto` is left to it."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"--ray_address {address}: nothing answers there ({error}).") from error
