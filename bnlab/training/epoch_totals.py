"""Loss and accuracy over a training epoch, at next to no cost per step."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

# steps folded together: one small kernel for many steps, where one per step would cost as much as the MLP's forward
_FOLD = 16


class EpochAverages(NamedTuple):
    """Means over the samples of an epoch, as 0-dimensional float64 or float32 tensors on the device."""

    loss: Tensor
    accuracy: Tensor


class EpochTotals:
    """Sums of loss and correct predictions over batches, kept on the device without waiting for it."""

    def __init__(self) -> None:
        self._recent: list[tuple[Tensor, ...]] = []  # loss, logits, labels
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._samples = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in a batch: its mean loss (), logits (N, classes) and labels (N,)."""
        self._recent.append((loss.detach(), logits.detach(), labels))
        if len(self._recent) == _FOLD:
            self._fold()

    def _fold(self) -> None:
        losses, logits, labels = zip(*self._recent, strict=True)
        self._recent.clear()
        sizes = torch.tensor([len(batch) for batch in labels], dtype=torch.float32, device=losses[0].device)
        self._losses.append(torch.dot(torch.stack(losses).float(), sizes))
        self._correct.append(torch.count_nonzero(torch.cat(logits).argmax(1) == torch.cat(labels)))
        self._samples += sum(len(batch) for batch in labels)

    def pop(self) -> EpochAverages | None:
        """The epoch's averages, None without a batch; start the next epoch."""
        if self._recent:
            self._fold()
        if not self._samples:
            return None
        averages = EpochAverages(
            torch.stack(self._losses).sum() / self._samples,
            torch.stack(self._correct).sum() / self._samples,
        )
        self._losses, self._correct, self._samples = [], [], 0
        return averages

    def state_dict(self) -> dict[str, Any]:
        """The sums so far; tensors and numbers only. Nothing is folded earlier for it: that would round otherwise."""
        return {
            "recent": [list(batch) for batch in self._recent],
            "losses": list(self._losses),
            "correct": list(self._correct),
            "samples": self._samples,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where the checkpoint stopped."""
        self._recent = [tuple(part.to(device) for part in batch) for batch in state["recent"]]
        self._losses = [loss.to(device) for loss in state["losses"]]
        self._correct = [correct.to(device) for correct in state["correct"]]
        self._samples = state["samples"]
