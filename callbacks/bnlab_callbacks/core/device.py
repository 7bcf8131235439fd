"""Values that wait on their device, and their way to the host: many in one copy, and each once."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


def widest(device: torch.device) -> torch.dtype:
    """float64, which holds every count exactly, or float32 where the device has nothing wider (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def pack(tensors: Sequence[Tensor]) -> tuple[Tensor, list[slice]]:
    """Join tensors of any shape and dtype into one vector of the widest float dtype, on the first one's device.

    Returns:
        the vector, and where in it each tensor's elements lie.
    """
    device = tensors[0].device
    # floats and whole numbers apart, so that counts stay exact; not by dtype: ranks whose batches differ in size may
    # compute in float32 and in float64, and their vectors must be laid out alike
    groups: dict[tuple[bool, bool], list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        groups[tensor.is_floating_point(), tensor.ndim == 0].append(index)
    # one join and one conversion per group, not per tensor: launches are what a small net's record costs
    joined: list[Tensor] = []
    where: dict[int, slice] = {}
    start = 0
    for (_, single), group in groups.items():
        some = [tensors[index] for index in group]
        if any(tensor.device != device for tensor in some):  # a model over several devices
            some = [tensor.to(device) for tensor in some]
        one = torch.stack(some) if single else torch.cat([tensor.reshape(-1) for tensor in some])
        joined.append(one.to(widest(device)))
        for index, tensor in zip(group, some, strict=True):
            where[index] = slice(start, start + tensor.numel())
            start = where[index].stop
    return torch.cat(joined), [where[index] for index in range(len(tensors))]


def to_host(values: Sequence[Tensor | float]) -> list[float]:
    """Values of 0-dimensional tensors, in their order, through one copy off the device; numbers stay as they are."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return [float(value) for value in values]
    vector, where = pack(tensors)
    numbers: list[float] = vector.tolist()
    read = (numbers[place.start] for place in where)
    return [next(read) if isinstance(value, Tensor) else value for value in values]


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
