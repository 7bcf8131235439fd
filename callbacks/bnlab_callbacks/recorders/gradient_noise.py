"""The recorder of gradient noise: lengths of the gradients of a step's batches, before they are added up."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnlab_callbacks.core.weights import real
from bnlab_callbacks.statistics.chunks import wide_dtype
from bnlab_callbacks.statistics.gradient_noise import Estimate, estimate
from bnlab_callbacks.statistics.gradients import stored_values


class GradientNoiseRecorder:
    """Sees what each backward pass of one step adds to the gradients, by hooks on the parameters.

    Under DDP that is a rank's own gradient: it is averaged behind the hooks.

    Attributes:
        failure: the last error in a hook.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._handles: list[RemovableHandle] = []
        self._squares: list[Tensor] = []  # of the present backward pass, for each parameter
        self._passes: list[Tensor] = []  # sums of these
        self._lengths: list[int] = []  # samples of each batch

    @property
    def recording(self) -> bool:
        """Whether hooks are on."""
        return bool(self._handles)

    def begin(self, model: nn.Module) -> None:
        """A step begins that is recorded."""
        self.forget()
        self._handles = [
            parameter.register_hook(_Hook(self))  # type: ignore[no-untyped-call]
            for parameter in model.parameters()
            if parameter.requires_grad and parameter.is_leaf
        ]

    def add_batch(self, samples: int) -> None:
        """A batch of the step begins."""
        self._lengths.append(samples)

    def after_backward(self) -> None:
        """A backward pass is over."""
        if self._squares:
            device = self._squares[0].device
            self._passes.append(torch.stack([one.to(device) for one in self._squares]).sum())
        self._squares = []

    def finish(self, model: nn.Module, ranks: int, scale: float, remaining: float) -> Estimate | None:
        """The estimate, from the gradients as they are before the optimizer steps; None where there is none.

        That is where the step has one batch on one rank, batches of unlike lengths, or more or fewer backward passes
        than batches.

        Args:
            model: the model.
            ranks: on which batches like these were run.
            scale: what the loss was multiplied by.
            remaining: what of it the gradients are still multiplied by.
        """
        passes, lengths = self._passes, self._lengths
        self.forget()
        parts = len(passes) * ranks
        if parts < 2 or len(passes) != len(lengths) or len(set(lengths)) > 1 or not lengths[0]:
            return None
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        squares = [_square(gradient).to(passes[0].device) for gradient in gradients]
        big = torch.stack(squares).sum() / remaining**2
        # what the passes have added up to is the mean of as many times each: by whatever the loss was divided
        small = torch.stack(passes).sum() * len(passes) / scale**2
        return estimate(small, big, parts, lengths[0])

    def forget(self) -> None:
        """Take the hooks off; harmless when repeated."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._squares, self._passes, self._lengths = [], [], [], []

    def note(self, gradient: Tensor) -> None:
        """A gradient is about to be added."""
        try:
            self._squares.append(_square(gradient))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a diagnostic, training goes on
            self.failure = f"{type(error).__name__}: {error}"


class _Hook:
    """A hook on a parameter; in a copy or a pickle it does nothing."""

    def __init__(self, into: GradientNoiseRecorder | None = None) -> None:
        self.into = into

    def __call__(self, gradient: Tensor) -> None:
        if self.into is not None:
            self.into.note(gradient.detach())

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _Hook, ()


def _square(gradient: Tensor) -> Tensor:
    values = real(stored_values(gradient.detach()))
    length: Tensor = torch.linalg.vector_norm(values, dtype=wide_dtype(values))
    return length.square()
