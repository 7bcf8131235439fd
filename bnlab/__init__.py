"""bnlab: a laboratory for batch normalization, with the diagnostics that show why a net does not train."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlab.data import ImageDataModule
    from bnlab.errors import InputError
    from bnlab.training import Classifier

__version__ = "0.1.0"
__all__ = ["Classifier", "ImageDataModule", "InputError", "__version__"]
_MODULES = {"Classifier": "training", "ImageDataModule": "data", "InputError": "errors"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and Lightning take seconds, `bnlab --help` must not."""
    if name not in _MODULES:
        raise AttributeError(f"module 'bnlab' has no attribute {name!r}")
    return getattr(import_module(f"bnlab.{_MODULES[name]}"), name)
