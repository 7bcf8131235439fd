"""What goes into a net and what comes out of it: its batch's inputs and targets, and the outputs of its last layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from bnlab_callbacks.activation_hooks import is_dense_float
from bnlab_callbacks.diagnosis.observations import NormBatch
from bnlab_callbacks.forward_order import Gate
from bnlab_callbacks.naming import clean_name

_LARGE = 1 << 24  # logits of which no second loss is computed
_SAME = 1e-3  # relative; half precision gives 1e-4 or so


class _Hook:
    """A forward hook; an object, since closures cannot be pickled."""

    def __init__(self, layer: str, norm: bool, into: BatchEnds) -> None:
        self.layer, self.norm, self.into = layer, norm, into

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self.into.gate.open:
            return
        if not self.norm:
            self.into.output = output.detach() if is_dense_float(output) else None
        elif isinstance(output, Tensor) and output.ndim > 1 and module.training:
            ranks = ranks_of(module)
            batch = NormBatch(ranks * (output.numel() // max(output.shape[1], 1)), ranks * output.shape[0])
            self.into.norm_values[self.layer] = min(batch, self.into.norm_values.get(self.layer, batch))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(self.layer, self.norm, BatchEnds())

    def __reduce__(self) -> tuple[type[_Hook], tuple[str, bool, BatchEnds]]:
        return _Hook, (self.layer, self.norm, BatchEnds())


def ranks_of(norm: nn.Module) -> int:
    """Number of ranks whose batches a norm joins: 1, but for `SyncBatchNorm`."""
    if isinstance(norm, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
        return dist.get_world_size(cast(Any, norm.process_group))
    return 1


class BatchEnds:
    """Hooks on layers with weights, the last of which to run gives the net's output, and on batch-norm layers."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.output: Tensor | None = None
        self.norm_values: dict[str, NormBatch] = {}
        self._handles: list[RemovableHandle] = []

    def watch(self, model: nn.Module) -> None:
        """Put the hooks on; shut ones cost next to nothing."""
        for name, module in model.named_modules():
            norm = isinstance(module, _BatchNorm)
            if norm or any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
                self._handles.append(module.register_forward_hook(_Hook(clean_name(name), norm, self)))

    def remove(self) -> None:
        """Take the hooks off; harmless when repeated."""
        self.gate.open = False
        self.output = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take_output(self) -> Tensor | None:
        """The last layer's output in this batch, and shut the hooks."""
        self.gate.open = False
        output, self.output = self.output, None
        return output


class Task(NamedTuple):
    """What the first batch tells of the task."""

    chance_loss: float | None  # of a net that knows nothing; None where there are no classes
    softmax_twice: bool


def inputs_of(batch: Any) -> Tensor | None:
    """The first tensor of real numbers in a batch."""
    return next((tensor for tensor in tensors_of(batch) if is_dense_float(tensor)), None)


def input_statistics(batch: Any) -> dict[str, Tensor]:
    """Mean, standard deviation and largest magnitude of the inputs, 0-dimensional; none where there are no such."""
    inputs = inputs_of(batch)
    if inputs is None or inputs.numel() < 2:
        return {}
    wide = inputs.detach().float()
    std, mean = torch.std_mean(wide, correction=0)
    return {"input_mean": mean, "input_std": std, "input_absmax": wide.abs().amax()}


def output_spread(output: Tensor | None) -> dict[str, Tensor]:
    """Standard deviation over the batch of an output (N, …), mean over the rest; none of a batch of one."""
    if output is None or output.ndim < 2 or output.shape[0] < 2:
        return {}
    return {"output_std": output.float().std(0, correction=0).mean()}


def task_of(batch: Any, output: Tensor | None, loss: float) -> Task:
    """Recognize classification: whole-number targets (N, …) and outputs (N, …, C) or (N, C) of C ≥ 2 classes.

    The loss of guessing is then ln C, unless the first loss is far from the cross entropy of these (half or twice;
    label smoothing and penalties stay within). Two copies off the device, of two numbers each, once in a run.
    """
    found = logits_and_targets(batch, output)
    if found is None or not math.isfinite(loss):
        return Task(None, False)
    logits, targets = found
    classes = logits.shape[1]
    plain = F.cross_entropy(logits, targets)
    twice = F.cross_entropy(logits.softmax(1), targets)
    once, again = torch.stack([plain, twice]).tolist()
    doubled = math.isclose(again, loss, rel_tol=_SAME) and not math.isclose(once, loss, rel_tol=_SAME)
    plausible = doubled or 0.5 * once < loss < 2 * once
    return Task(math.log(classes) if plausible else None, doubled)


def logits_and_targets(batch: Any, output: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Outputs as logits (N, C) and the batch's whole-number targets (N,) that fit them; None where there are none."""
    if output is None or not 0 < output.numel() <= _LARGE or output.ndim < 2:
        return None
    for target in tensors_of(batch):
        if target.dtype not in (torch.int64, torch.int32) or target.ndim == 0:
            continue
        for logits in (output, output.movedim(1, -1)):
            if target.shape == logits.shape[:-1] and logits.shape[-1] > 1:
                flat, wanted = logits.reshape(-1, logits.shape[-1]).float(), target.reshape(-1).long()
                low, high = torch.stack(torch.aminmax(wanted)).tolist()
                if low >= 0 and high < flat.shape[1]:
                    return flat, wanted
    return None


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """All tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        for value in batch:
            yield from tensors_of(value)
