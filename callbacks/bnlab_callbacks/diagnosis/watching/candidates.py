"""What an output and a target that meet in a loss would be as a task, and the numbers that show whether they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab_callbacks.core.device import Change
from bnlab_callbacks.diagnosis.watching.loss_watch import Consumed, reach_of
from bnlab_callbacks.statistics.baselines import absolute_error_of_median, moments, r_squared, share_outside, spread

_LARGE = 1 << 24  # values of an output that is not looked at
_COLUMNS, _CLASSES, _BROADCAST = 4096, 4096, 4096  # at most
_SLACK = 0.05  # of a reachable range, by which noise may lie outside
_SURE = 1e-3  # that probabilities sum to 1


@dataclass
class Candidate:
    """A reading of a loss.

    Attributes:
        kind: `cross_entropy`, `binary`, `squared`, `absolute`.
        certain: whether it need not be shown by its value: a known function that the loss comes from.
        linear: whether the loss is a multiple of it.
        root: whether the loss is its square root.
        own_share: whether each sample has one label, so that the labels' shares are a baseline.
        smoothing: of labels.
        classes: number of them.
        sizes: factors that a loss by hand may have, beside ½ of them: it may be a sum over columns or over all values.
        function: what made the output, as in `reach_of`.
        low: the least value that it can reach.
        high: the largest.
        broadcast: whether each output meets each target, (N, 1) against (N,).
        values: on their device: `value` of the loss, quantities of an observation, and what baselines are made of.
    """

    kind: str
    certain: bool
    linear: bool = True
    root: bool = False
    own_share: bool = True
    smoothing: float = 0.0
    classes: int = 0
    sizes: tuple[float, ...] = (1.0,)
    function: str = ""
    low: float = -torch.inf
    high: float = torch.inf
    broadcast: bool = False
    values: dict[str, Tensor] = field(default_factory=dict)

    def change_tensors(self, change: Change) -> Candidate:
        """The same with other tensors."""
        return replace(self, values={name: change(value) for name, value in self.values.items()})


def candidates(consumed: Sequence[Consumed]) -> list[Candidate]:
    """All readings of a loss, the surest first. Nothing is read off the device."""
    found: list[Candidate] = []
    for one in consumed:
        if 0 < one.output.numel() <= _LARGE and one.target.numel() and one.output.is_floating_point():
            with torch.no_grad():
                found += _READ[one.how](one)
    return found


def _base(one: Consumed, kind: str, certain: bool) -> Candidate:
    reach = reach_of(one.output) or ("", -torch.inf, torch.inf)
    function, low, high = reach
    linear = (one.linear and one.single) or not certain
    return Candidate(kind, certain, linear, one.root, function=function, low=low, high=high)


def _options(one: Consumed, *names: str) -> dict[str, Any]:
    return {name: one.options[name] for name in names if one.options.get(name) is not None}


# numbers


def _of_numbers(one: Consumed, kind: str, loss: Callable[..., Tensor], certain: bool) -> Candidate | None:
    """A regression by a function of (outputs, targets) that is a mean over all values."""
    output, target = one.output.detach().float(), one.target.detach().float()
    if not output.ndim or not target.ndim:
        return None
    base = _base(one, kind, certain)
    mixed = output.ndim != target.ndim and output.numel() == target.numel() == max(output.shape[0], target.shape[-1])
    base.broadcast = mixed and 1 < output.numel() <= _BROADCAST
    if not base.broadcast and output.shape != target.shape:
        return None
    value = loss(output, target)
    base.sizes = (1.0, float(output[0].numel()), float(output.numel()))
    outputs, targets = output.reshape(len(output), -1), target.reshape(len(target), -1)
    if base.broadcast:
        outputs, targets = output.reshape(-1, 1), target.reshape(-1, 1)
    base.values = {"value": value, **_spreads(base, outputs, targets)}
    if kind == "squared":
        found = moments(targets)
        mean, squares = found.mean, found.squares
        if targets.shape[1] > _COLUMNS:  # one column, as if its mean never changed
            mean, squares = mean.new_zeros(1), squares.mean()[None] * (len(targets) / max(len(targets) - 1, 1))
        base.values |= {"count": mean.new_tensor(float(len(targets))), "mean": mean, "squares": squares}
    elif len(targets) > 1:
        medians = targets.median(0).values.expand_as(targets)
        constant = absolute_error_of_median(targets) if kind == "absolute" and not certain else loss(medians, targets)
        base.values["constant"] = constant * (len(targets) / (len(targets) - 1))
    return base


def _spreads(base: Candidate, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    low, high = torch.aminmax(targets)
    found = {"label_low": low, "label_high": high, "label_count": low.new_tensor(float(targets.numel()))}
    if len(outputs) > 1:
        found |= {"output_std": spread(outputs), "target_std": spread(targets)}
        found["r_squared"] = r_squared(outputs, targets)
    if base.function:
        width = base.high - base.low if base.high < torch.inf and base.low > -torch.inf else 0.0
        found["outside"] = share_outside(targets, base.low, base.high, _SLACK * width)
    return found


def _squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def _absolute(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().mean()


def _known_numbers(kind: str, loss: Callable[..., Tensor], *names: str) -> Callable[[Consumed], list[Candidate]]:
    def read(one: Consumed) -> list[Candidate]:
        options = _options(one, *names)
        if one.options.get("weight") is not None:
            return []

        def of(output: Tensor, target: Tensor) -> Tensor:
            shape = (output - target).shape
            return loss(output.expand(shape), target.expand(shape), **options)

        found = _of_numbers(one, kind, of, one.single)
        return [] if found is None else [found]

    return read


def _difference(one: Consumed) -> list[Candidate]:
    found = [
        _of_numbers(one, "squared", _squared, False),
        _of_numbers(one, "absolute", _absolute, False),
    ]
    return [each for each in found if each is not None]


# classes


def _classes(
    one: Consumed, value: Callable[[Tensor], Tensor] | None, weight: Tensor | None = None, ignored: int = -100
) -> list[Candidate]:
    """A classification, of outputs (M, C) and classes (M,) or their probabilities (M, C); other classes do not count.

    Args:
        one: the output and the target.
        value: of a known loss function; None for a loss by hand, a mean over the M of −Σ target · output, where the
            outputs are log probabilities, or probabilities whose logarithm was taken behind.
        weight: of the classes.
        ignored: a class that does not count.
    """
    rows = _rows(one)
    if rows is None or rows[0].shape[1] < 2 - (value is not None):
        return []
    logits, targets = rows
    base = _base(one, "cross_entropy", value is not None)
    base.classes = classes = logits.shape[1]
    base.sizes = (1.0, float(len(logits)), 1 / classes)
    base.own_share = len(logits) == one.samples and classes <= _CLASSES
    if targets.ndim == 1:
        inside = ((targets >= 0) & (targets < classes) & (targets != ignored)).float()
        labels = targets.clamp(0, classes - 1)
    else:
        inside, labels = targets.sum(1), targets.argmax(1)
    base.values = {
        "label_low": torch.where(inside > 0, labels, classes).amin().float(),
        "label_high": torch.where(inside > 0, labels, -1).amax().float(),
        "label_count": inside.sum(),
    }
    if weight is not None:
        inside, targets = inside * weight[labels], targets if targets.ndim == 1 else targets * weight
    counts = targets.sum(0) if targets.ndim == 2 else logits.new_zeros(classes).index_add_(0, labels, inside)
    base.values["counts"] = counts
    if len(logits) > 1:
        base.values["output_std"] = spread(logits)

    def cross(log_probabilities: Tensor) -> Tensor:
        chosen = log_probabilities.gather(1, labels[:, None])[:, 0] * inside
        return -(chosen if targets.ndim == 1 else (log_probabilities * targets).sum(1)).sum() / inside.sum()

    if value is not None:
        odd = ((logits.sum(1) - 1).abs() > _SURE).any() | (logits < 0).any()
        if one.how == "nll":
            base.values["not_normalised"] = torch.logsumexp(logits, 1).abs().median()
        elif classes > 1:
            base.values["probabilities"] = (~odd).float()
        own = cross(logits.log_softmax(1))
        return [replace(base, values=base.values | {"value": value(one.output.detach().float()), "own_loss": own})]
    readings = (logits, logits.log()) if one.how == "choice" else (logits,)
    whole = (inside - 1).abs().amax() < _SURE if targets.ndim == 2 else torch.ones_like(inside, dtype=torch.bool).all()
    by_hand = []
    for log_probabilities in readings:  # or else a mask, or the values of actions
        sure = whole & (torch.logsumexp(log_probabilities, 1).abs().amax() < _SURE)
        by_hand.append(torch.where(sure, cross(log_probabilities), torch.nan))
    return [replace(base, values=base.values | {"value": own, "own_loss": own}) for own in by_hand]


def _rows(one: Consumed) -> tuple[Tensor, Tensor] | None:
    """Outputs (M, C) and targets (M,) or (M, C), from (N, C, …) and (N, …) or (N, C, …)."""
    output, target = one.output.detach().float(), one.target.detach()
    output = output[None] if output.ndim == 1 else output
    rows = output.movedim(1, -1).reshape(-1, output.shape[1])
    if target.numel() == output.numel() and (target.is_floating_point() or one.how == "product"):
        return rows, target.float().reshape(output.shape).movedim(1, -1).reshape(rows.shape)
    if target.is_floating_point() or target.numel() != len(rows):
        return None
    return rows, target.reshape(-1).long()


def _known_classes(one: Consumed) -> list[Candidate]:
    options = _options(one, "weight", "ignore_index", "label_smoothing")
    loss: Callable[..., Tensor] = F.nll_loss if one.how == "nll" else F.cross_entropy
    target, weight = one.target.detach(), options.get("weight")
    if weight is not None:
        options["weight"] = weight = weight.detach().float()
    ignored = options.get("ignore_index", -100)
    found = _classes(one, lambda output: loss(output, target, **options), weight, ignored)
    return [replace(each, smoothing=float(options.get("label_smoothing", 0.0))) for each in found]


def _by_hand(one: Consumed) -> list[Candidate]:
    return _classes(one, None) if one.output.ndim == 2 else []


# a number between 0 and 1 for each label


def _binary(one: Consumed) -> list[Candidate]:
    output, target = one.output.detach().float(), one.target.detach().float()
    if output.shape != target.shape or not output.ndim:
        return []
    logits = one.how == "binary_logits"
    outputs, targets = output.reshape(len(output), -1), target.reshape(len(target), -1)
    base = _base(one, "binary", True)
    base.classes = 2
    base.sizes = (1.0, float(output.numel()), float(targets.shape[1]))
    base.own_share = not _options(one, "pos_weight", "weight") and targets.shape[1] <= _COLUMNS
    own = (F.binary_cross_entropy_with_logits if logits else F.binary_cross_entropy)(outputs, targets)
    low, high = torch.aminmax(targets)
    numbers = {"value": own, "own_loss": own, "label_low": low, "label_high": high}
    count, labels = own.new_tensor(float(len(targets))), own.new_tensor(float(targets.numel()))
    base.values = numbers | {"count": count, "label_count": labels, "ones": targets.clamp(0, 1).mean(0)}
    if len(outputs) > 1:
        base.values["output_std"] = spread(outputs)
    if len(outputs) > 1 and not logits:  # which have no size of their own
        base.values["target_std"] = spread(targets)
    if logits:
        base.values["probabilities"] = own.new_tensor(float(base.function == "sigmoid"))
    return [base]


_READ: Mapping[str, Callable[[Consumed], list[Candidate]]] = {
    "cross_entropy": _known_classes,
    "nll": _known_classes,
    "binary": _binary,
    "binary_logits": _binary,
    "squared": _known_numbers("squared", F.mse_loss),
    "absolute": _known_numbers("absolute", F.l1_loss),
    "smooth": _known_numbers("absolute", F.smooth_l1_loss, "beta"),
    "huber": _known_numbers("absolute", F.huber_loss, "delta"),
    "difference": _difference,
    "choice": _by_hand,
    "product": _by_hand,
}
