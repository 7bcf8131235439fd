"""What the package may import."""

import ast
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
