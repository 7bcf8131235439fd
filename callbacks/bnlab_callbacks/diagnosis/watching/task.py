"""The tensors of a batch, and the task as it is guessed from one batch where calls are not seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGE = 1 << 24  # logits of which no second loss is computed
_SAME = 1e-3  # relative; half precision gives 1e-4 or so
_DEPTH = 3  # of attributes within attributes


class Guess(NamedTuple):
    """An output and a target of one batch that may be logits and classes; on their device, until it is known."""

    classes: int
    numbers: Tensor  # (5,): smallest and largest target, cross entropy of the logits, that of their softmax, the loss


class FirstTask(NamedTuple):
    """What one batch tells of the task."""

    chance_loss: float | None  # of a net that knows nothing; None where there are no classes
    softmax_twice: bool


def guesses(batch: Any, output: Tensor | None, loss: Tensor) -> list[Guess]:
    """What tells a classification: whole-number targets (N, …) and outputs (N, …, C) or (N, C) of C ≥ 2 classes.

    Nothing is read off the device.
    """
    found = []
    for logits, targets in _candidates(batch, output):
        classes = logits.shape[1]
        there = targets.clamp(0, classes - 1)  # out of range a device would fail, and nobody knows yet
        plain, twice = F.cross_entropy(logits, there), F.cross_entropy(logits.softmax(1), there)
        numbers = [*torch.aminmax(targets), plain, twice, loss.detach().to(plain.device)]
        found.append(Guess(classes, torch.stack([number.float() for number in numbers])))
    return found


def task_of(found: Iterable[Guess]) -> FirstTask:
    """The task, by the first guess whose targets are classes.

    The loss of guessing is ln C, unless the first loss is far from the cross entropy of these (half or twice; label
    smoothing and penalties stay within).
    """
    for classes, numbers in found:
        low, high, once, again, loss = numbers.tolist()
        if not math.isfinite(loss):
            break
        if low >= 0 and high < classes:
            doubled = math.isclose(again, loss, rel_tol=_SAME) and not math.isclose(once, loss, rel_tol=_SAME)
            plausible = doubled or 0.5 * once < loss < 2 * once
            return FirstTask(math.log(classes) if plausible else None, doubled)
    return FirstTask(None, False)


def logits_and_targets(batch: Any, output: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Outputs as logits (N, C) and the batch's whole-number targets (N,) that fit them; None where there are none."""
    for logits, targets in _candidates(batch, output):
        low, high = torch.stack(torch.aminmax(targets)).tolist()
        if low >= 0 and high < logits.shape[1]:
            return logits, targets
    return None


def _candidates(batch: Any, output: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs (N, C) and whole-number targets (N,) whose shapes fit; the targets may be anything."""
    if output is None or not 0 < output.numel() <= _LARGE or output.ndim < 2:
        return
    for target in tensors_of(batch):
        if target.dtype not in (torch.int64, torch.int32) or target.ndim == 0:
            continue
        for logits in (output, output.movedim(1, -1)):
            if target.shape == logits.shape[:-1] and logits.shape[-1] > 1:
                yield logits.reshape(-1, logits.shape[-1]).float(), target.reshape(-1).long()


def tensors_of(batch: Any, deep: bool = False) -> Iterator[Tensor]:
    """All tensors of a batch, in order; with `deep` also those that are attributes of other objects."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value, deep)
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        for value in batch:
            yield from tensors_of(value, deep)
    elif deep:
        yield from _attributes(batch, _DEPTH)


def _attributes(owner: Any, depth: int) -> Iterator[Tensor]:
    """Tensors within an object of any class, as graphs' and molecules' batches are."""
    inside = owner.values() if isinstance(owner, Mapping) else getattr(owner, "__dict__", {}).values()
    for value in list(inside):
        if isinstance(value, Tensor | list | tuple):
            yield from tensors_of(value)
        elif depth:
            yield from _attributes(value, depth - 1)


def samples_of(batch: Any) -> int:
    """The length of the first tensor of a batch that has one; 0 where none has. Of PyG's batches the graphs."""
    graphs = getattr(batch, "num_graphs", None)
    if isinstance(graphs, int) and graphs > 0:
        return graphs
    return next((tensor.shape[0] for tensor in tensors_of(batch) if tensor.ndim), 0)
