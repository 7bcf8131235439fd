"""Values that wait on their device, and how they get to the host: many of them in one copy, and each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bnlab_callbacks.core.lightning.scalars import pack

Change = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class DeviceValues:
    """Something with tensors in it, which are brought to the host once, however many read it.

    Attributes:
        value: whatever holds the tensors.
        change_tensors: gives `value` with each tensor that is to be read replaced.
        on_host: whether these tensors are on the host already.
    """

    value: Any
    change_tensors: Callable[[Any, Change], Any]
    on_host: bool = field(default=False, kw_only=True)


def bring_to_host(values: Iterable[DeviceValues]) -> None:
    """Replace all tensors by ones on the host (of the widest float dtype if they were elsewhere), through one copy."""
    away: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if is_away(tensor):
            away[id(tensor)] = tensor
        return tensor

    new = [one for one in values if not one.on_host]
    for one in new:
        one.change_tensors(one.value, note)
        one.on_host = True
    if away:
        here = dict(zip(away, copy_to_host(list(away.values())), strict=True))
        for one in new:
            one.value = one.change_tensors(one.value, lambda tensor: here.get(id(tensor), tensor))


def is_away(tensor: Tensor) -> bool:
    """Whether reading it waits for a device."""
    return not tensor.is_cpu


def copy_to_host(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors of the same shapes on the host, in the widest float dtype, through one copy."""
    vector, where = pack(tensors)
    host = vector.cpu()
    single = host.unbind()  # one launch for all of them
    return [
        single[place.start] if tensor.ndim == 0 else host[place].view(tensor.shape)
        for tensor, place in zip(tensors, where, strict=True)
    ]
