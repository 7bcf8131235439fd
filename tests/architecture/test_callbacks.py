"""The plan of the callbacks: their rooms, which may import which, and who knows Lightning."""

import subprocess
import sys
from pathlib import Path

import pytest

import bnlab_callbacks
from tests.architecture.rooms import arrows, circle, imported, rooms, upward

TOP = Path(bnlab_callbacks.__file__).parent
ALL = "diagnostics"  # the door that opens the others
DOORS = {path.stem for path in TOP.glob("*.py")} - {"__init__", "__main__"}

# from the ground up: a room may import what stands before it
FLOORS = (
    {"core"},
    {"statistics"},
    {"recorders"},
    {"replica"},
    {"diagnosis"},
    {"pages"},
    DOORS - {ALL},
    {ALL, "__main__"},
)
FLOORS_OF_DIAGNOSIS = (
    {"findings", "observations"},
    {"rules"},
    {"judging"},
    {"summary", "watching"},
    {"preflight", "outcome"},
    {"training_diagnosis"},
)
# who may know Lightning, beside what lies in core/lightning
KNOW_LIGHTNING = {
    *(f"{door}.py" for door in DOORS),
    "diagnosis/training_diagnosis.py",
    "diagnosis/preflight/lightning_preflight.py",
}


@pytest.mark.parametrize(
    "folder",
    sorted(path.parent for path in TOP.rglob("__init__.py")),
    ids=lambda path: str(path.relative_to(TOP.parent)),
)
def test_no_imports_run_in_a_circle(folder: Path) -> None:
    assert not circle(arrows(folder))


def test_no_import_runs_upwards() -> None:
    assert set().union(*FLOORS) == rooms(TOP)
    found = arrows(TOP)
    assert ("gradient_monitor", "recorders") in found
    assert upward(found, FLOORS) == []


def test_no_import_runs_upwards_in_the_diagnosis() -> None:
    assert set().union(*FLOORS_OF_DIAGNOSIS) == rooms(TOP / "diagnosis")
    found = arrows(TOP / "diagnosis")
    assert ("rules", "observations") in found
    assert upward(found, FLOORS_OF_DIAGNOSIS) == []


@pytest.mark.parametrize(("folder", "most_rooms", "most_arrows"), [(TOP, 20, 56), (TOP / "diagnosis", 10, 25)])
def test_the_house_stays_small(folder: Path, most_rooms: int, most_arrows: int) -> None:
    assert len(rooms(folder)) <= most_rooms
    assert len(arrows(folder)) <= most_arrows


def test_lightning_is_known_to_the_doors_and_one_room_only() -> None:
    know = set()
    for path in TOP.rglob("*.py"):
        name = path.relative_to(TOP).as_posix()
        tops = {each.partition(".")[0] for each in imported(path)}
        if tops & {"lightning", "pytorch_lightning"}:
            assert name.startswith("core/lightning/"), name
        if any(each.startswith("bnlab_callbacks.core.lightning.") for each in imported(path)):
            know.add(name)
    others = {name for name in know if not name.startswith("core/lightning/")} - {"__init__.py"}  # its names are lazy
    assert "gradient_monitor.py" in others
    assert others - KNOW_LIGHTNING == set()


WITHOUT_LIGHTNING = """
import importlib, pathlib, sys
sys.modules |= dict.fromkeys(["lightning", "lightning.pytorch", "pytorch_lightning", "matplotlib", "tensorboard"])
top = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(top.parent))
for path in sorted(top.rglob("*.py")):
    name = ".".join(path.relative_to(top.parent).with_suffix("").parts).removesuffix(".__init__")
    doors = path.relative_to(top).as_posix() in sys.argv[2:]
    if not doors and ".core.lightning." not in name and "__main__" not in name:
        importlib.import_module(name)
        print(name)
"""


@pytest.mark.slow
def test_all_other_rooms_work_where_there_is_nothing_but_torch() -> None:
    words = [sys.executable, "-W", "error", "-c", WITHOUT_LIGHTNING, str(TOP), *KNOW_LIGHTNING]
    done = subprocess.run(words, capture_output=True, text=True, cwd=TOP.parent)
    assert done.returncode == 0, done.stderr
    names = set(done.stdout.split())
    assert {"bnlab_callbacks.recorders.gradients", "bnlab_callbacks.diagnosis.watching.run_watch"} <= names
    assert {"bnlab_callbacks.replica.step_replica", "bnlab_callbacks.diagnosis.preflight.look"} <= names


def test_dir_shows_public_names_only() -> None:
    assert dir(bnlab_callbacks) == sorted(bnlab_callbacks.__all__)
    assert all(getattr(bnlab_callbacks, name).__doc__ for name in bnlab_callbacks.__all__)
