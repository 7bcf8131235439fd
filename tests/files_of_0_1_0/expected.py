"""The numbers that tell whether two runs ended alike: sums over their weights, and the steps in their event files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch import Tensor

LAYOUT = "custom_scalars__config__"
"""What TensorBoard knows the layout of charts by."""


def sums(checkpoint: dict[str, Any]) -> dict[str, list[float]]:
    """Three sums, in float64, over each tensor of a checkpoint's net and optimizer: of x, of |x|, of place times x.

    The place runs from 0 for a tensor's first element to 1 behind its last.
    """
    tensors = {**checkpoint["state_dict"], **dict(_of_optimizers(checkpoint["optimizer_states"]))}
    return {name: _sums(tensor) for name, tensor in tensors.items()}


def _of_optimizers(states: list[dict[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for number, state in enumerate(states):
        for parameter, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    yield f"optimizer {number}, parameter {parameter}, {name}", value


def _sums(tensor: Tensor) -> list[float]:
    x = tensor.detach().double().flatten()
    place = torch.arange(len(x), dtype=torch.float64) / len(x)
    return [x.sum().item(), x.abs().sum().item(), (place * x).sum().item()]


def event_steps(folder: Path) -> dict[str, list[int]]:
    """The steps of each scalar and of the layout of charts in a folder's event files, each as often as it is there."""
    steps: dict[str, list[int]] = defaultdict(list)
    for path in folder.glob("events*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value") or value.tag == LAYOUT:
                    steps[value.tag].append(event.step)
    return {tag: sorted(steps[tag]) for tag in sorted(steps)}
