"""What goes into a net and what comes out of it: its batch's inputs, and the outputs of its last layer."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnlab_callbacks.core.forward_order import Gate
from bnlab_callbacks.core.module_hooks import ModuleHooks
from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.diagnosis.observations import NormBatch
from bnlab_callbacks.diagnosis.watching.task import tensors_of
from bnlab_callbacks.recorders.activation_hooks import is_dense_float


class _Hook:
    """A forward hook; an object, since closures cannot be pickled."""

    def __init__(self, layer: str, norm: bool, into: BatchEnds) -> None:
        self.layer, self.norm, self.into = layer, norm, into

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            self.into.gate.compiled = True
            return
        if not self.into.gate.open:
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
        self.hooks = ModuleHooks(self.gate)

    def watch(self, model: nn.Module) -> None:
        """Put the hooks on."""
        for name, module in model.named_modules():
            norm = isinstance(module, _BatchNorm)
            if norm or any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
                self.hooks.add(partial(module.register_forward_hook, _Hook(clean_name(name), norm, self)))

    def remove(self) -> None:
        """Take the hooks off; harmless when repeated."""
        self.output = None
        self.hooks.remove()

    def take_output(self) -> Tensor | None:
        """The last layer's output in this batch, and shut the hooks."""
        self.gate.open = False
        output, self.output = self.output, None
        return output


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
