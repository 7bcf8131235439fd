"""The ends of a net: what its first layer gets, what its last one gives, and what batch norms normalize with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bnlab_callbacks.core.hooks import HookOwner, ModuleHook, ModuleHooks
from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.diagnosis.observations import NormBatch
from bnlab_callbacks.diagnosis.watching.batch_tensors import tensors_of
from bnlab_callbacks.recorders.activations import is_dense_float
from bnlab_callbacks.recorders.batch_norm import find_batch_norms

_CHANNELS, _SAMPLES = 2, 1000  # of sound


class _LayerHook(ModuleHook):
    """Keeps what the first layer with weights gets, and the last one gives. Nothing in compiled code."""

    only_in_training = False
    into: BatchEnds

    def record(self, module: nn.Module, *given: Any) -> None:
        inputs, output = given[0], given[-1]
        if self.into.first is None:
            self.into.first = module
        if module is self.into.first and self.into.keeps_inputs and inputs and is_dense_float(inputs[0]):
            self.into.inputs.append(inputs[0].detach())
        self.into.output = output.detach() if is_dense_float(output) else None


class _NormHook(ModuleHook):
    """Keeps the size of the smallest batch of a batch norm. Nothing in compiled code."""

    into: BatchEnds

    def record(self, module: nn.Module, *given: Any) -> None:
        output = given[-1]
        if isinstance(output, Tensor) and output.ndim > 1:
            ranks = ranks_of(module)
            batch = NormBatch(ranks * (output.numel() // max(output.shape[1], 1)), ranks * output.shape[0])
            self.into.norm_values[self.layer] = min(batch, self.into.norm_values.get(self.layer, batch))


def ranks_of(norm: nn.Module) -> int:
    """Number of ranks whose batches a norm joins: 1, but for `SyncBatchNorm`."""
    if isinstance(norm, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
        return dist.get_world_size(cast(Any, norm.process_group))
    return 1


class BatchEnds(HookOwner):
    """Hooks on layers with weights, of which the first and the last to run are the net's ends, and on batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.keeps_inputs = True  # until they are known
        self.first: nn.Module | None = None  # to run in this batch
        self.inputs: list[Tensor] = []  # of all its calls: that of a sequence's cell gets them step by step
        self.output: Tensor | None = None
        self.norm_values: dict[str, NormBatch] = {}
        self.hooks = ModuleHooks(self.gate)

    def watch(self, model: nn.Module) -> None:
        """Put the hooks on."""
        norms = {id(module) for _, module in find_batch_norms(model)}
        for name, module in model.named_modules():
            if id(module) in norms:
                self.hooks.add(partial(module.register_forward_hook, _NormHook(clean_name(name), self)))
            elif _is_layer(name, module):
                self.hooks.add(partial(module.register_forward_hook, _LayerHook(clean_name(name), self)))

    def listen(self, recorded: bool) -> None:
        """Record the batch that begins, or do not."""
        if recorded:
            self.hooks.put_on()
        else:
            self.hooks.take_off()
        self.first, self.inputs = None, []
        self.gate.open = recorded

    def remove(self) -> None:
        """Take the hooks off; harmless when repeated."""
        self.first = self.output = None
        self.inputs = []
        self.hooks.remove()

    def take(self) -> tuple[nn.Module | None, list[Tensor], Tensor | None]:
        """The first layer in this batch, what its calls got and what the last one gave; shut the hooks."""
        self.gate.open = False
        ends = self.first, self.inputs, self.output
        self.inputs, self.output = [], None
        return ends


def _is_layer(name: str, module: nn.Module) -> bool:
    """Whether a module holds weights of two or more dimensions, itself or through a parametrization."""
    if ".parametrizations." in f".{name}.":
        return False
    return hasattr(module, "parametrizations") or any(p.ndim > 1 for p in module.parameters(recurse=False))


def inputs_of(batch: Any) -> list[Tensor]:
    """The first tensor of real numbers in a batch; none where there is none."""
    return [tensor for tensor in tensors_of(batch) if is_dense_float(tensor)][:1]


def input_statistics(inputs: Sequence[Tensor], first: nn.Module | None = None) -> dict[str, Tensor]:
    """Mean, standard deviation and largest magnitude of all inputs, 0-dimensional; none where there are no such.

    `input_unscaled` is 1 where these say nothing: zeros and ones (one-hot), and sound, as `first`, the first layer,
    tells: long signals of one or two channels.
    """
    if sum(tensor.numel() for tensor in inputs) < 2:
        return {}
    wide = torch.cat([tensor.detach().float().reshape(-1) for tensor in inputs])
    std, mean = torch.std_mean(wide, correction=0)
    numbers = {"input_mean": mean, "input_std": std, "input_absmax": wide.abs().amax()}
    bits = (wide * (wide - 1) == 0).all().float()
    sound = isinstance(first, nn.Conv1d) and first.in_channels <= _CHANNELS and inputs[0].shape[-1] >= _SAMPLES
    return numbers | {"input_unscaled": torch.ones_like(bits) if sound else bits}


def largest(output: Tensor | None) -> dict[str, Tensor]:
    """`last_absmax`, the largest magnitude of the last layer's outputs; infinite where one is not finite."""
    if output is None:
        return {}
    most = output.abs().amax().float()
    return {"last_absmax": torch.where(most.isfinite(), most, torch.inf)}
