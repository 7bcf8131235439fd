"""What the package may import, and where it works."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bnlab_callbacks

PACKAGE = Path(bnlab_callbacks.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

ALLOWED = {"torch", "lightning", "pytorch_lightning", "bnlab_callbacks"} | sys.stdlib_module_names
# what writes pictures, TensorBoard's events and Parquet needs more: only where it is used, and only if it is installed
OPTIONAL = {"numpy", "tensorboard", "matplotlib", "pyarrow"}


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of everything that is imported anywhere in a syntax tree."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.names}"
            names.add((node.module or "").partition(".")[0])
    return names


def python(code: str) -> str:
    """Run `code` in a fresh interpreter that knows the callbacks' folder alone, beside what is installed."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:bnlab_callbacks", "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.name)
def test_modules_import_torch_and_lightning_only(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert imported(tree) <= ALLOWED | OPTIONAL
    for node in tree.body:
        lazy = isinstance(node, ast.FunctionDef | ast.ClassDef) or "TYPE_CHECKING" in ast.dump(node)
        assert lazy or imported(node) <= ALLOWED


def test_the_package_is_typed_and_exports_its_callbacks() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert {"ActivationMonitor", "BatchNormMonitor", "EpochTimer", "GradientMonitor"} < set(bnlab_callbacks.__all__)
    assert all(getattr(bnlab_callbacks, name) for name in bnlab_callbacks.__all__)
    assert not (PACKAGE.parent / "__init__.py").exists()


def test_the_folder_alone_is_enough_and_nothing_heavy_comes_along() -> None:
    code = """
import lightning.pytorch, sys  # Lightning itself brings in matplotlib where it is installed
before = set(sys.modules)
import bnlab_callbacks
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
assert not {"bnlab", "tensorboard"} & {name.partition(".")[0] for name in sys.modules}
"""
    assert set(python(code).split()) <= {"bnlab_callbacks"} | sys.stdlib_module_names


WITHOUT_LIGHTNING = """
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


@pytest.mark.slow
def test_pytorch_lightning_alone_is_enough() -> None:
    assert "done" in python(WITHOUT_LIGHTNING)
