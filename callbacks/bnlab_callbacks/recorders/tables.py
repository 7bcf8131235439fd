"""The common part of what turns recorded steps into tables of values."""

from collections.abc import Callable, Iterable

from bnlab_callbacks.core.naming import number, numbered_name
from bnlab_callbacks.core.ranks import Agreement

ELSEWHERE = "it failed on another rank."


def everything(layer: str) -> bool:
    """Lets every layer through."""
    return True


class Tables:
    """Turns what a recorder left into tables, for one reader.

    Attributes:
        numbered: layers → `<NN>_<layer>`, in order of execution.
        failed: whether recording failed on some rank.
        different: whether ranks ran different layers in a step, which is then left out.

    Args:
        wants: which layers are to be in the tables.
    """

    def __init__(self, wants: Callable[[str], bool] = everything) -> None:
        self.wants = wants
        self.numbered: dict[str, str] = {}
        self.failed = False
        self.different = False

    def number(self, names: Iterable[str]) -> None:
        """Fix the numbers at the first record; what turns up later gets the next ones: no tag ever changes its name."""
        found = list(dict.fromkeys(names))
        if not self.numbered:
            self.numbered = number(found)
        for name in found:
            self.numbered.setdefault(name, numbered_name(len(self.numbered), name))

    def note(self, agreement: Agreement) -> None:
        """Take note of what the messages of all ranks say of a step."""
        self.failed |= agreement == "failed"
        self.different |= agreement == "different"
