"""bnlab: a laboratory for batch normalization, with the diagnostics that show why a net does not train."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlab.data import ImageDataModule
    from bnlab.errors import InputError
    from bnlab.training import Classifier

__version__ = "0.1.0"
__all__ = ["Classifier", "ImageDataModule", "InputError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and Lightning take seconds, `bnlab --help` must not."""
    if name == "Classifier":
        from bnlab.training import Classifier

        return Classifier
    if name == "ImageDataModule":
        from bnlab.data import ImageDataModule

        return ImageDataModule
    if name == "InputError":
        from bnlab.errors import InputError

        return InputError
    raise AttributeError(f"module 'bnlab' has no attribute {name!r}")
