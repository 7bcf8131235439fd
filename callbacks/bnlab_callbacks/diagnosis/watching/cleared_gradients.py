"""Whether gradients are cleared between two steps of an optimizer, seen without looking at their values."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

_Stamp = tuple[int, int]  # where a gradient lies, and how often it was changed in place


@dataclass
class _Watched:
    """One parameter of an optimizer, from one step to the next."""

    parameter: Tensor
    stamp: _Stamp
    same: int = 0  # backward passes that found the gradient as it had been left
    changed: bool = False  # it was cleared, or otherwise changed, before one of them


class ClearedGradients:
    """Compares one gradient of an optimizer as a step leaves it with what the next backward passes find.

    A gradient that is there, and was changed in place by nobody in between, still holds what the step was made of. Who
    changes it otherwise (clips or scales it at that time), or runs backward passes that are not told, is not judged.
    """

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._uncleared: dict[int, int] = {}

    def uncleared(self, optimizer: Optimizer) -> int:
        """Watched steps in a row that were made of gradients of the step before as well."""
        return self._uncleared.get(id(optimizer), 0)

    def before_step(self, optimizer: Optimizer, watch: bool) -> None:
        """A step is about to be made; `watch` what happens until the next one."""
        before = self._watched.pop(id(optimizer), None)
        if before is not None and (before.changed or before.same):
            self._uncleared[id(optimizer)] = 0 if before.changed else self.uncleared(optimizer) + 1
        if watch:
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            first = next((one for one in parameters if _stamp(one) is not None), None)
            stamp = None if first is None else _stamp(first)
            if first is not None and stamp is not None:
                self._watched[id(optimizer)] = _Watched(first, stamp)

    def before_backward(self) -> None:
        """A backward pass begins."""
        for watched in self._watched.values():
            if _stamp(watched.parameter) == watched.stamp:
                watched.same += 1
            else:
                watched.changed = True

    def after_backward(self) -> None:
        """It is over: it may have added to the gradients."""
        for watched in self._watched.values():
            stamp = _stamp(watched.parameter)
            if stamp is None:
                watched.changed = True
            else:
                watched.stamp = stamp


def _stamp(parameter: Tensor) -> _Stamp | None:
    """None without a gradient, or with one that is not dense."""
    gradient = parameter.grad
    if gradient is None or gradient.layout != torch.strided or gradient.device.type == "meta":
        return None
    return gradient.data_ptr(), gradient._version
