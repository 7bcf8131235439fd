"""Both of Lightning's packages: callbacks are those of the one in use, and the command line of each takes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLBACKS = Path(__file__).parents[2] / "callbacks"
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packages", "imported"),
    [
        ("lightning.pytorch", "lightning"),
        ("pytorch_lightning", "pytorch_lightning"),
        ("pytorch_lightning,lightning.pytorch", "lightning pytorch_lightning"),
    ],
)
def test_the_command_line_of_either_package_takes_the_callbacks(packages: str, imported: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(YAML)
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, packages],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CALLBACKS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("call", "imp", "tags")))
    assert said["callbacks"] == "GradientMonitor ActivationMonitor EpochTimer TrainingDiagnosis"
    assert said["imported"] == imported
    assert {"grad_rms_epoch/00_net.0", "act_mean_epoch/00_net.1", "time/epoch_s"} <= set(said["tags"].split())


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


@pytest.mark.slow
def test_without_lightning_the_error_says_what_to_install() -> None:
    environment = {**os.environ, "PYTHONPATH": str(CALLBACKS)}
    command = [sys.executable, "-c", WITHOUT_LIGHTNING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    assert "pip install lightning, or pip install pytorch-lightning" in done.stdout
