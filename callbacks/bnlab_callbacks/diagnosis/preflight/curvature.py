"""The largest curvature of a batch's loss, and the learning rates that are stable with it.

Cohen, Kaur, Li, Kolter & Talwalkar 2021, Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability,
section 2 and appendix B: on a quadratic of largest curvature λ, gradient descent diverges from lr = 2/λ on, with heavy
ball momentum μ from 2(1 + μ)/λ, with Nesterov's from 2(1 + μ)/((1 + 2μ)λ).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from bnlab_callbacks.replica.step_replica import StepReplica

STEPS = 10  # Hessian-vector products
_CONVERGED = 1e-6  # of the largest curvature: what is left to look at
_DISTANCE = 1e-3  # of finite differences, of the weights' norm


class Curvature(NamedTuple):
    """Of the loss along the sharpest direction that was found."""

    largest: float  # λ, a lower bound of the Hessian's largest eigenvalue
    method: str  # how it was measured


class Limit(NamedTuple):
    """The learning rate from which an optimizer diverges on a quadratic."""

    lr: float
    formula: str


def stable_limit(optimizer: Optimizer, curvature: float) -> Limit | None:
    """The largest stable learning rate; None for optimizers that rescale the gradient (Adam), where none is known."""
    if type(optimizer) is not SGD or curvature <= 0:
        return None
    group = max(optimizer.param_groups, key=lambda group: float(group["lr"]))
    momentum = float(group["momentum"])
    if momentum == 0:
        return Limit(2 / curvature, "2/λ, gradient descent")
    if group["nesterov"]:
        return Limit(
            2 * (1 + momentum) / ((1 + 2 * momentum) * curvature), f"2(1+μ)/((1+2μ)λ), Nesterov μ={momentum:g}"
        )
    damped = 1 - float(group["dampening"])
    limit = 2 * (1 + momentum) / (curvature * damped) if damped > 0 else math.inf
    return Limit(limit, f"2(1+μ)/λ, heavy ball μ={momentum:g}" + (", over 1 - dampening" if damped != 1 else ""))


def largest_curvature(step: StepReplica, grads: dict[str, Tensor], steps: int = STEPS) -> Curvature:
    """The largest eigenvalue of the Hessian over all parameters that have a gradient, by Lanczos iterations.

    Lanczos' method is the power iteration that keeps what each product tells: ten products find in nets what a power
    iteration needs a hundred for, and it cannot take a large negative curvature for a positive one. It starts from the
    gradient with noise from a generator of its own. Products are by double backward; where a part of the net has none,
    by differences of gradients.

    Args:
        step: the step, at the weights.
        grads: the gradient there.
        steps: Hessian-vector products.

    Raises:
        ArithmeticError: the curvature overflows.
    """
    names = [name for name, grad in grads.items() if not grad.is_complex()]
    start = _start([grads[name] for name in names])
    try:
        value, method = _by_double_backward(step, names, start, steps), "double backward"
    except (RuntimeError, NotImplementedError):
        value, method = _by_differences(step, names, start, steps), "differences of gradients"
    if not math.isfinite(value):
        raise ArithmeticError("the curvature overflows")
    return Curvature(value, method)


def _by_double_backward(step: StepReplica, names: list[str], start: list[Tensor], steps: int) -> float:
    twin = step.twin({})
    parameters = dict(twin.named_parameters())
    weights = [parameters[name] for name in names]
    with step.loss(twin) as loss:
        slopes = torch.autograd.grad(loss, weights, create_graph=True)

        def product(direction: list[Tensor]) -> list[Tensor]:
            along = sum((one * other).sum() for one, other in zip(slopes, direction, strict=True))
            assert isinstance(along, Tensor)
            if not along.requires_grad:  # the loss is linear
                return [torch.zeros_like(one) for one in direction]
            rows = torch.autograd.grad(along, weights, retain_graph=True, allow_unused=True)
            return [torch.zeros_like(w) if row is None else row for row, w in zip(rows, weights, strict=True)]

        return _lanczos(product, start, steps)


def _by_differences(step: StepReplica, names: list[str], start: list[Tensor], steps: int) -> float:
    here = [step.weights[name].detach() for name in names]
    distance = _DISTANCE * max(_norm(here), 1e-3)

    def gradient(direction: list[Tensor], by: float) -> list[Tensor]:
        moved = {name: w + by * d for name, w, d in zip(names, here, direction, strict=True)}
        found = step.evaluate(moved).grads
        return [found.get(name, torch.zeros_like(w)) for name, w in zip(names, here, strict=True)]

    def product(direction: list[Tensor]) -> list[Tensor]:
        ahead, behind = gradient(direction, distance), gradient(direction, -distance)
        return [(a - b) / (2 * distance) for a, b in zip(ahead, behind, strict=True)]

    return _lanczos(product, start, steps)


def _start(gradient: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(g.shape, generator=generator, dtype=torch.float32).to(g) for g in gradient]
    scale = _norm(noise) / max(_norm(gradient), torch.finfo(torch.float32).tiny)
    return [n + scale * g if math.isfinite(scale) else n for n, g in zip(noise, gradient, strict=True)]


def _lanczos(product: Callable[[list[Tensor]], list[Tensor]], start: list[Tensor], steps: int) -> float:
    """The largest Ritz value; two vectors are kept, since lost orthogonality costs extreme values nothing."""
    size = _norm(start)
    now, before = [one / size for one in start], [torch.zeros_like(one) for one in start]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, sum(one.numel() for one in start))):
        ahead = product(now)
        alpha = _dot(ahead, now)
        beta = beside[-1] if beside else 0.0
        ahead = [a - alpha * n - beta * b for a, n, b in zip(ahead, now, before, strict=True)]
        diagonal.append(alpha)
        rest = _norm(ahead)
        if not math.isfinite(alpha + rest):
            return math.nan
        if rest <= _CONVERGED * max(map(abs, diagonal)):
            break
        beside.append(rest)
        now, before = [a / rest for a in ahead], now
    beside = beside[: len(diagonal) - 1]
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    return float(torch.linalg.eigvalsh(matrix)[-1])


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return float(sum((one.double() * other.double()).sum().cpu() for one, other in zip(a, b, strict=True)))


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(_dot(tensors, tensors))
