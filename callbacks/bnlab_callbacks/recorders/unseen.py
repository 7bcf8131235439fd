"""Layers that ran and were not recorded, and why."""

from collections.abc import Callable, Iterator

from bnlab_callbacks.recorders.tables import everything

EVALUATION = "run in evaluation mode"
NO_GRADIENT = "run without gradients"
COMPILED = "run compiled"
MEANT = (EVALUATION, NO_GRADIENT, COMPILED)  # as a rule: frozen parts, momentum encoders
TRANSFORMED = "run under a transform of torch.func"
UNREADABLE = "give no dense tensor of floating-point numbers"
_NAMED = 3  # of a reason's layers


class Unseen:
    """Gathers layers by the reason why they are not recorded; one that was recorded at least once does not count."""

    def __init__(self) -> None:
        self._layers: dict[str, dict[str, None]] = {}
        self._seen: set[str] = set()
        self._compiled: list[str] = []

    def note_compiled(self, modules: list[str]) -> None:
        """Modules are compiled, and functions in them not seen; an empty name is the whole model's."""
        self._compiled = modules

    def add(self, layer: str, reason: str) -> None:
        """A layer ran and was not recorded."""
        if layer not in self._seen:
            self._layers.setdefault(reason, {})[layer] = None

    def saw(self, layer: str) -> None:
        """A layer was recorded."""
        self._seen.add(layer)

    @property
    def seen(self) -> list[str]:
        """The layers that ran and can be recorded, whether somebody wants them or not."""
        return sorted(self._seen)

    def lines(self, wants: Callable[[str], bool] = everything) -> dict[str, str]:
        """Reasons → `3 layers run in evaluation mode: not recorded (net.act, …)`, of wanted layers."""
        found = {reason: line for reason in self._layers for line in self._line(reason, wants)}
        if self._compiled:
            where = ", ".join(self._compiled[:_NAMED]) + (", …" if len(self._compiled) > _NAMED else "")
            found[COMPILED] = (
                "functions are not seen in compiled code, nor modules in what ran compiled before training began "
                f"({where or 'the net'})"
            )
        return found

    def _line(self, reason: str, wants: Callable[[str], bool]) -> Iterator[str]:
        left = [layer for layer in self._layers[reason] if layer not in self._seen and wants(layer)]
        if left:
            named = ", ".join(left[:_NAMED]) + (", …" if len(left) > _NAMED else "")
            number = f"{len(left)} layers {reason}" if len(left) > 1 else f"1 layer {_singular(reason)}"
            yield f"{number}: not recorded ({named})"


def _singular(reason: str) -> str:
    verb, _, rest = reason.partition(" ")
    return f"{verb}s {rest}"
