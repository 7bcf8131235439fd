"""The plan of the laboratory: its rooms, and which of them may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bnlab_callbacks
from tests.architecture.rooms import arrows, circle, imported, rooms, upward

PROJECT = Path(__file__).parents[2]
LABORATORY = PROJECT / "bnlab"

# from the ground up: a room may import what stands before it
FLOORS = (
    {"errors"},
    {"files"},
    {"data"},
    {"nets"},
    {"training"},
    {"resuming"},
    {"studies", "reports"},
    {"cli"},
    {"__main__"},
)


def folders() -> list[Path]:
    """The laboratory, and every package in it."""
    return sorted(path.parent for path in LABORATORY.rglob("__init__.py"))


@pytest.mark.parametrize("folder", folders(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_imports_run_in_a_circle(folder: Path) -> None:
    assert not circle(arrows(folder))


def test_what_a_circle_is() -> None:
    assert circle({("a", "b"), ("b", "c"), ("a", "c")}) == set()
    assert circle({("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")}) >= {"b", "c"}


def test_no_import_runs_upwards() -> None:
    assert set().union(*FLOORS) == rooms(LABORATORY)
    found = arrows(LABORATORY)
    assert ("cli", "training") in found
    assert upward(found, FLOORS) == []


def test_the_house_stays_small() -> None:
    assert len(rooms(LABORATORY)) <= 10
    assert len(arrows(LABORATORY)) <= 24


def test_the_laboratory_imports_public_names_of_the_callbacks_only() -> None:
    public = {f"bnlab_callbacks.{name}" for name in bnlab_callbacks.__all__}
    used = {
        (str(path.relative_to(PROJECT)), name)
        for path in LABORATORY.rglob("*.py")
        for name in imported(path)
        if name.partition(".")[0] == "bnlab_callbacks"
    }
    assert "bnlab_callbacks.GradientMonitor" in {name for _, name in used}
    assert [each for each in sorted(used) if each[1] not in public] == []


def test_no_lightning_callback_lives_at_the_command_line() -> None:
    for path in (LABORATORY / "cli").glob("*.py"):
        classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        bases = {ast.unparse(base) for each in classes for base in each.bases}
        assert not {base for base in bases if base.endswith(("Callback", "ProgressBar", "Checkpoint"))}, path.name


# torch and Lightning come first: whether they need the modules that Windows lacks is not asked here
IMPORT_EVERYTHING = """
import importlib, pathlib, sys, warnings
sys.path[:0] = [".", "callbacks"]
import lightning.pytorch.cli, tensorboard, torchvision
for name in [each for each in sys.modules if each.partition(".")[0] == "filelock"]:
    del sys.modules[name]
sys.modules |= dict.fromkeys(["fcntl", "resource", "pwd", "grp", "termios"])
warnings.filterwarnings("ignore", "only soft file lock is available")
import bnlab.data
bnlab.data.describe("svhn", "x")
print("scipy.io is", "there" if "scipy.io" in sys.modules else "not there")
for path in sorted(pathlib.Path("bnlab").rglob("*.py")):
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    importlib.import_module(name)
    print(name)
"""


@pytest.fixture(scope="module")
def imports() -> list[str]:
    """What a process says that imports every module of the laboratory, as far as it can on Windows."""
    words = [sys.executable, "-W", "ignore", "-c", IMPORT_EVERYTHING]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_every_module_can_be_imported_without_the_modules_that_windows_lacks(imports: list[str]) -> None:
    assert len(imports) == 1 + len(list(LABORATORY.rglob("*.py")))


@pytest.mark.slow
def test_scipy_io_is_not_imported_before_svhn_is_read(imports: list[str]) -> None:
    assert imports[0] == "scipy.io is not there"
