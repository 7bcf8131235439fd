"""The sharing of a machine's cores, memory and GPUs among runs."""

import pytest

from bnlab.errors import InputError
from bnlab.studies.local_engine import LocalEngine, Machine, default_jobs, environment, this_machine

GIB = 1 << 30


@pytest.mark.parametrize(
    ("machine", "runs", "jobs"),
    [
        (Machine(2, 24 * GIB), 36, 2),
        (Machine(64, 256 * GIB), 36, 36),  # no more than there are runs
        (Machine(64, 256 * GIB), 100, 64),  # no more than cores
        (Machine(64, 8 * GIB), 100, 5),  # no more than memory has room for
        (Machine(1, GIB), 36, 1),
        (Machine(16, 128 * GIB, (80 * GIB,)), 36, 4),
        (Machine(16, 128 * GIB, (8 * GIB, 8 * GIB)), 36, 4),  # two on each
        (Machine(16, 128 * GIB, (2 * GIB,)), 36, 1),
        (Machine(2, 128 * GIB, (80 * GIB,)), 36, 2),
        (Machine(16, 128 * GIB), 0, 1),
    ],
)
def test_as_many_jobs_as_fit(machine: Machine, runs: int, jobs: int) -> None:
    assert default_jobs(machine, runs) == jobs


@pytest.mark.parametrize(("cores", "jobs", "threads"), [(16, 4, 4), (16, 3, 5), (2, 2, 1), (2, 8, 1)])
def test_threads_are_shared_out(cores: int, jobs: int, threads: int) -> None:
    assert LocalEngine("x", jobs, Machine(cores, GIB)).threads == threads


def test_a_job_knows_its_threads_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment(0, 3, 0)["OMP_NUM_THREADS"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in environment(0, 3, 0)
    assert [environment(slot, 1, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")  # what the study itself was given
    assert [environment(slot, 1, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "6", "4"]


def test_no_jobs_is_an_error() -> None:
    with pytest.raises(InputError, match="--jobs 0"):
        LocalEngine("x", 0, Machine(2, GIB))


def test_this_machine_has_cores_and_memory() -> None:
    machine = this_machine(use_gpus=False)
    assert machine.cores >= 1
    assert machine.memory > GIB / 4
    assert machine.gpus == ()
