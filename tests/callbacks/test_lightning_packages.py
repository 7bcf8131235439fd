"""Both of Lightning's packages: callbacks are those of the one in use, and need neither the other nor much else."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnlab_callbacks.plugin import VARIABLE
from tests.helpers.interpreters import Interpreter

PROJECT = Path(__file__).parents[2]
CALLBACKS = PROJECT / "callbacks"
GROUPS = ("lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory")
POINT = "bnlab_callbacks = bnlab_callbacks.plugin:callbacks_from_environment"
STRICT = ("-W", "error::UserWarning:bnlab_callbacks")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def with_lightning() -> Iterator[Interpreter]:
    with Interpreter("lightning.pytorch", options=STRICT) as interpreter:
        yield interpreter


@pytest.fixture(scope="module")
def with_pytorch_lightning() -> Iterator[Interpreter]:
    with Interpreter("pytorch_lightning", options=STRICT) as interpreter:
        yield interpreter


@pytest.fixture
def interpreter(package: str, request: pytest.FixtureRequest) -> Interpreter:
    """One that has imported one of the packages, and not the other."""
    found = request.getfixturevalue("with_lightning" if package == "lightning.pytorch" else "with_pytorch_lightning")
    assert isinstance(found, Interpreter)
    return found


PACKAGES = pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])

# from a command line

YAML = """
trainer:
  max_epochs: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  logger: false
  enable_checkpointing: false
  callbacks:
    - class_path: bnlab_callbacks.GradientMonitor
      init_args:
        every_n_steps: 1
    - class_path: bnlab_callbacks.ActivationMonitor
    - class_path: bnlab_callbacks.EpochTimer
    - class_path: bnlab_callbacks.TrainingDiagnosis
"""
TRAIN = """
import importlib, sys
import torch

packages = [importlib.import_module(name) for name in sys.argv[1].split(",")]
pl = packages[0]
cli = importlib.import_module(f"{pl.__name__}.cli")

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(8, 2), batch_size=4)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

trainer = cli.LightningCLI(Net, args=["fit", "--config", "config.yaml"], save_config_callback=None).trainer
from bnlab_callbacks.core.lightning import names

assert all(names.is_lightning_module(package.LightningModule()) for package in packages)
assert not names.is_lightning_module(trainer.model.net)
own = [callback for callback in trainer.callbacks if type(callback).__module__.startswith("bnlab_callbacks")]
for callback in own:
    assert all(isinstance(callback, package.Callback) for package in packages), type(callback).__mro__
print("callbacks", *(type(callback).__name__ for callback in own[:4]))
print("imported", *(name for name in ("lightning", "pytorch_lightning") if name in sys.modules))
print("tags", *sorted(trainer.callback_metrics))
"""


@pytest.mark.parametrize(
    ("package", "also", "imported"),
    [
        ("lightning.pytorch", "", "lightning"),
        ("pytorch_lightning", "", "pytorch_lightning"),
        ("pytorch_lightning", ",lightning.pytorch", "lightning pytorch_lightning"),
    ],
)
def test_the_command_line_of_either_package_takes_the_callbacks(
    package: str, also: str, imported: str, interpreter: Interpreter, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(YAML)
    output = interpreter.run(TRAIN, package + also, folder=tmp_path, paths=[CALLBACKS])
    said = dict(line.split(" ", 1) for line in output.splitlines() if line.startswith(("call", "imp", "tags")))
    assert said["callbacks"] == "GradientMonitor ActivationMonitor EpochTimer TrainingDiagnosis"
    assert said["imported"] == imported
    assert {"grad_rms_epoch/00_net.0", "act_mean_epoch/00_net.1", "time/epoch_s"} <= set(said["tags"].split())


# as a plugin that is installed


def entry_points(folder: Path) -> Path:
    """A folder for PYTHONPATH with the callbacks' metadata, in the place of that which is installed."""
    info = folder / "bnlab_callbacks-0.0.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bnlab-callbacks\nVersion: 0.0.0\n")
    (info / "entry_points.txt").write_text("".join(f"[{group}]\n{POINT}\n" for group in GROUPS))
    return folder


FIT = """
import os, sys
import {package} as pl
import torch

before = set(sys.modules)
from bnlab_callbacks.plugin import VARIABLE, callbacks_from_environment

assert callbacks_from_environment() == []  # the variable is empty
print("imported", *sorted({{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names))

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

for value in ("", "GradientMonitor,RecordFile"):
    os.environ[VARIABLE] = value
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(8, 2), batch_size=4))
    print("callbacks", *(type(each).__name__ for each in trainer.callbacks))
    print("tags", *sorted(trainer.callback_metrics))
"""


@PACKAGES
def test_lightning_finds_the_plugin_by_its_entry_points_and_an_empty_variable_changes_nothing(
    package: str, interpreter: Interpreter, tmp_path: Path
) -> None:
    paths = (entry_points(tmp_path), PROJECT, CALLBACKS)
    output = interpreter.run(FIT.format(package=package), folder=tmp_path, paths=paths, variables={VARIABLE: ""})
    told = [line for line in output.splitlines() if line.startswith(("imported", "callbacks", "tags"))]
    imported, empty, no_tags, callbacks, tags = told
    assert (imported, empty, no_tags) == ("imported bnlab_callbacks", "callbacks ModelCheckpoint", "tags")
    assert callbacks == "callbacks LateCallbacks GradientMonitor RecordFile ModelCheckpoint"
    assert "grad_rms_epoch/00_net.0" in tags
    assert len(list(tmp_path.glob("**/records.csv"))) == 1


# with nothing else


def test_the_folder_alone_is_enough_and_nothing_heavy_comes_along(with_lightning: Interpreter) -> None:
    code = """
import lightning.pytorch, sys  # Lightning itself brings in matplotlib where it is installed
before = set(sys.modules)
import bnlab_callbacks
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
assert not {"bnlab", "tensorboard"} & {name.partition(".")[0] for name in sys.modules}
"""
    output = with_lightning.run(code, folder=CALLBACKS, paths=[CALLBACKS])
    assert set(output.split()) <= {"bnlab_callbacks"} | sys.stdlib_module_names


ALONE = """
import importlib.abc, sys

class NoLightning(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lightning":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoLightning())
import torch
from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor
import pytorch_lightning as pl

assert issubclass(GradientMonitor, pl.Callback)

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

callbacks = [GradientMonitor(), ActivationMonitor(), EpochTimer()]
trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(8, 2), batch_size=4))
assert all(callback.latest for callback in callbacks)
assert "lightning" not in sys.modules
print("done", len(trainer.callback_metrics))
"""


def test_pytorch_lightning_alone_is_enough(with_pytorch_lightning: Interpreter) -> None:
    assert "done" in with_pytorch_lightning.run(ALONE, folder=CALLBACKS, paths=[CALLBACKS])


WITHOUT_LIGHTNING = """
import sys

sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None  # as if none were installed
import bnlab_callbacks
from bnlab_callbacks import plugin

try:
    bnlab_callbacks.GradientMonitor
except ImportError as error:
    print(error)
"""


def test_without_lightning_the_error_says_what_to_install() -> None:
    environment = {**os.environ, "PYTHONPATH": str(CALLBACKS)}
    command = [sys.executable, "-c", WITHOUT_LIGHTNING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    assert "pip install lightning, or pip install pytorch-lightning" in done.stdout
