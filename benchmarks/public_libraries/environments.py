"""One virtual environment for each library, in which torch and Lightning are those of the running interpreter."""

from __future__ import annotations

import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIREMENTS: Mapping[str, tuple[str, ...]] = {  # library → what pip installs, the lightest first
    "segmentation_models_pytorch": ("segmentation-models-pytorch",),
    "lightly": ("lightly",),
    "neuralforecast": ("neuralforecast",),
    "pytorch_forecasting": ("pytorch-forecasting",),
    "darts": ("darts",),
    "pytorch_tabular": ("pytorch-tabular",),
    "torch_uncertainty": ("torch-uncertainty",),
    "chemprop": ("chemprop",),
    "deeptab": ("deeptab",),
    "gluonts": ("gluonts[torch]",),
    "scvi_tools": ("scvi-tools",),
    "rl4co": ("rl4co",),
    "anomalib": ("anomalib",),
}
SHARED = ("torch", "torchvision", "lightning", "pytorch-lightning")  # a second torch would be gigabytes
_DONE = "installed.txt"


class InstallError(Exception):
    """A library could not be installed; the text says why, in a line."""


def python_of(library: str, folder: Path, limit: float) -> Path:
    """The interpreter of the library's environment below `folder`, which is made where it is not there yet.

    Raises:
        InstallError: pip failed, or took longer than `limit` seconds.
    """
    environment = folder / library
    python, done = environment / "bin/python", environment / _DONE
    if done.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", environment], check=True)
    (own,) = environment.glob("lib/python*/site-packages")
    (own / "running_interpreter.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    pins = environment / "constraints.txt"
    pins.write_text("".join(f"{pin}\n" for pin in pinned(SHARED)), encoding="utf-8")
    _install(python, ["-c", str(pins), *REQUIREMENTS[library]], limit)
    done.write_text("\n".join(REQUIREMENTS[library]) + "\n", encoding="utf-8")
    return python


def pinned(names: Sequence[str]) -> list[str]:
    """`name==version` of those that the running interpreter has, without a build's local part (`+cpu`)."""
    pins = []
    for name in names:
        try:
            pins.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return pins


def _install(python: Path, arguments: Sequence[str], limit: float) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise InstallError(f"pip took longer than {limit:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise InstallError(f"pip: {reason(error.stderr)}") from None


def reason(text: str) -> str:
    """The line of an output that says most: the last one of an error, else the last one."""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("ERROR") or "Error" in line.split(":")[0]]
    return (errors or said or ["no output"])[-1][:300]
