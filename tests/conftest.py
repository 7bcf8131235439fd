"""Checks around every test: it must leave environment variables, threads, folders and random state as they were."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Lightning's and torch's own marks, set for their subprocesses: taken back here, no test's fault
SET_BY_LIBRARIES = {
    *("PYTEST_CURRENT_TEST", "PL_GLOBAL_SEED", "PL_SEED_WORKERS", "TORCHINDUCTOR_CACHE_DIR"),
    *("KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK"),  # importing scikit-learn
    "PYTORCH_NVML_BASED_CUDA_CHECK",  # importing Lightning
}
GRACE_S = 2.0  # for threads that were told to end

if "PYTEST_XDIST_WORKER" in os.environ:
    import torch  # not in the process that starts the workers, which would wait for it

    torch.set_num_threads(1)  # the cores are the workers'


def pytest_configure(config: pytest.Config) -> None:
    """Let through what Lightning says of any small run; all other warnings are errors."""
    gc.disable()  # until all is imported
    for message in (
        "ignore:.*does not have many workers",  # in-process loading is right for a few tensors
        r"ignore:The number of training batches \(\d+\) is smaller than the logging interval",
        "ignore:You defined a `validation_step` but have no `val_dataloader`",
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",  # Lightning 2.6 with torch 2.15
        "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",  # torch 2.11's own inductor
        "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning",  # torch.compile on that one release of Python
    ):
        config.addinivalue_line("filterwarnings", message)


# the files that take longest; begun first, so that two workers end at about the same time
LONGEST = (
    *("test_resume_processes.py", "test_ranks.py", "test_kill.py", "test_study_command.py", "test_study.py"),
    *("test_fit.py", "test_resume_stops.py", "test_resume.py", "test_resume_flags.py", "test_lightning_packages.py"),
    *("test_sharing.py", "test_equalities.py", "test_resume_damage.py", "test_hostile_files.py", "test_heatmap.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those with slow tests."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.name
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), item.path not in slow

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """The garbage collector looks at nothing that was imported: a million objects, each time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves environment variables, threads or files of a run behind; give the random state back."""
    import torch

    variables, threads, random_state = dict(os.environ), set(threading.enumerate()), torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(random_state)
    now = dict(os.environ)
    changed = {name for name in variables.keys() | now.keys() if variables.get(name) != now.get(name)}
    for name in changed:
        if name in variables:
            os.environ[name] = variables[name]
        else:
            del os.environ[name]
    deadline = time.monotonic() + GRACE_S
    while (left := set(threading.enumerate()) - threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not changed - SET_BY_LIBRARIES, f"environment variables were left changed: {changed}"
    assert not list(Path("bnlab").glob("20*")), "a run without a logger has written into the working directory"
    assert not left, f"threads were left running: {[thread.name for thread in left]}"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Nets this small gain nothing from more, and lose much beside other processes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
