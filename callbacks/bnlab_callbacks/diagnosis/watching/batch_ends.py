"""The ends of a net: its batch's inputs, the outputs of its last layer, and what batch norms have to normalize with."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bnlab_callbacks.core.hooks import HookOwner, ModuleHook, ModuleHooks
from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.diagnosis.observations import NormBatch
from bnlab_callbacks.diagnosis.watching.task import tensors_of
from bnlab_callbacks.recorders.activations import is_dense_float
from bnlab_callbacks.recorders.batch_norm import find_batch_norms


class _OutputHook(ModuleHook):
    """Keeps the output of a layer with weights; the last one's is the net's. Nothing in compiled code."""

    only_in_training = False
    into: BatchEnds

    def record(self, module: nn.Module, *given: Any) -> None:
        if not torch.compiler.is_compiling():
            output = given[-1]
            self.into.output = output.detach() if is_dense_float(output) else None


class _NormHook(ModuleHook):
    """Keeps the size of the smallest batch of a batch norm. Nothing in compiled code."""

    into: BatchEnds

    def record(self, module: nn.Module, *given: Any) -> None:
        output = given[-1]
        if not torch.compiler.is_compiling() and isinstance(output, Tensor) and output.ndim > 1:
            ranks = ranks_of(module)
            batch = NormBatch(ranks * (output.numel() // max(output.shape[1], 1)), ranks * output.shape[0])
            self.into.norm_values[self.layer] = min(batch, self.into.norm_values.get(self.layer, batch))


def ranks_of(norm: nn.Module) -> int:
    """Number of ranks whose batches a norm joins: 1, but for `SyncBatchNorm`."""
    if isinstance(norm, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
        return dist.get_world_size(cast(Any, norm.process_group))
    return 1


class BatchEnds(HookOwner):
    """Hooks on layers with weights, the last of which to run gives the net's output, and on batch-norm layers."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Tensor | None = None
        self.norm_values: dict[str, NormBatch] = {}
        self.hooks = ModuleHooks(self.gate)

    def watch(self, model: nn.Module) -> None:
        """Put the hooks on."""
        norms = {id(module) for _, module in find_batch_norms(model)}
        for name, module in model.named_modules():
            if id(module) in norms:
                self.hooks.add(partial(module.register_forward_hook, _NormHook(clean_name(name), self)))
            elif any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
                self.hooks.add(partial(module.register_forward_hook, _OutputHook(clean_name(name), self)))

    def listen(self, recorded: bool) -> None:
        """Record the batch that begins, or do not."""
        if recorded:
            self.hooks.put_on()
        else:
            self.hooks.take_off()
        self.gate.open = recorded

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
