"""The distribution: two import packages, installed as a wheel and as an editable checkout, with plain tools."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


def build(kind: str, folder: Path) -> zipfile.ZipFile:
    """Build the project with its own backend (`build_wheel` or `build_editable`), without the network."""
    code = f"import sys; from hatchling.build import {kind}; {kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=PROJECT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.mark.slow
def test_the_wheel_holds_two_packages_and_works(tmp_path: Path) -> None:
    with build("build_wheel", tmp_path) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bnlab", "bnlab_callbacks"}
    assert {"bnlab/py.typed", "bnlab_callbacks/py.typed"} <= set(names)
    assert "License-Expression: MIT" in metadata
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([*pip, *map(str, tmp_path.glob("*.whl"))], check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import bnlab, bnlab_callbacks\n"
        f"assert all(p.__file__.startswith({str(installed)!r}) for p in (bnlab, bnlab_callbacks))\n"
        "from bnlab.cli.main import main\n"
        "main(['fit', '--trainer.fast_dev_run', '1', '--trainer.accelerator', 'cpu'])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert (installed / "bin" / "bnlab").is_file()


@pytest.mark.slow
def test_the_editable_install_finds_both_packages(tmp_path: Path) -> None:
    with build("build_editable", tmp_path) as wheel:
        paths = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".pth"))
    assert {Path(line) for line in paths.split()} == {PROJECT, PROJECT / "callbacks"}


def test_versions_agree() -> None:
    import re

    import bnlab

    assert f'version = "{bnlab.__version__}"' in (PROJECT / "pyproject.toml").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", bnlab.__version__)
