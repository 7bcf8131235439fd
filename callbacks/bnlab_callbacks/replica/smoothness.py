"""The smoothness of the loss along its gradient.

Santurkar, Tsipras, Ilyas & Mądry 2018, How Does Batch Normalization Help Optimization?, section 3 and figure 4.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnlab_callbacks.core.device import to_host, widest
from bnlab_callbacks.core.hooks import ForwardOrder
from bnlab_callbacks.core.naming import layer_filter, number
from bnlab_callbacks.core.rank_means import Gathered, RankMeans, average
from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Table
from bnlab_callbacks.core.weights import find_weights, real
from bnlab_callbacks.recorders.tables import Tables
from bnlab_callbacks.replica.covariate_shift import covariate_shift
from bnlab_callbacks.replica.step_replica import Evaluation, StepReplica, untouched

# step lengths η, in learning rates, one evaluation each: about the steps that the optimizer makes
STEP_LENGTHS = (0.5, 1.0, 2.0, 4.0)


def along_gradient(step: StepReplica, start: Evaluation, lr: float) -> dict[str, Tensor]:
    """How loss and gradient change on the way W − ηg, g = ∇L(W) over all parameters, η in `STEP_LENGTHS` × `lr`.

    - `loss_min`, `loss_max`, `loss_range`: of L(W − ηg), and their difference
    - `gradient_predictiveness`: largest ‖∇L(W) − ∇L(W − ηg)‖₂
    - `effective_beta`: largest ‖∇L(W) − ∇L(W − ηg)‖₂ / ‖ηg‖₂; NaN where `lr` or g is 0

    Args:
        step: the step, at W.
        start: loss and gradient at W.
        lr: learning rate.

    Returns:
        0-dimensional tensors.
    """
    size = norm(start.grads)
    losses, changes, betas = [], [], []
    for length in STEP_LENGTHS:
        eta = length * lr
        with torch.no_grad():
            moved = {name: step.weights[name] - eta * gradient for name, gradient in start.grads.items()}
        there = step.evaluate(moved)
        change = norm(_differences(start.grads, there.grads))
        losses.append(there.loss)
        changes.append(change)
        betas.append(change / (eta * size))
    smallest, largest = torch.stack(losses).aminmax()
    return {
        "loss_min": smallest,
        "loss_max": largest,
        "loss_range": largest - smallest,
        "gradient_predictiveness": torch.stack(changes).amax(),
        "effective_beta": torch.stack(betas).amax(),
    }


def norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """2-norm of all elements of all tensors, 0-dimensional, in the widest dtype."""
    norms = [torch.linalg.vector_norm(real(x), dtype=widest(x.device)) for x in tensors.values()]
    together: Tensor = torch.linalg.vector_norm(torch.stack([one.to(norms[0].device) for one in norms]))
    return together


def _differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    """Differences; a parameter that has no gradient in one of them has gradient 0 there (and the sign is open)."""
    both = a.keys() & b.keys()
    return {name: a[name] - b[name] if name in both else one for name, one in (a | b).items()}


class SmoothnessProbe:
    """Measures one recorded step: copies it as it begins, evaluates the copies when it has ended.

    The values are of the step's first batch on this rank, with the gradient of its loss alone: before accumulation,
    averaging over ranks, and clipping.

    Args:
        pattern: regular expression searched in the names of the layers whose covariate shift is wanted.
        numbered: the layers' `<NN>_<layer>`, if they are known from an earlier part of the run.
        ranks: of the run, which all measure the same steps.
    """

    def __init__(self, pattern: str | None, numbered: Mapping[str, str], ranks: Ranks) -> None:
        self.numbered = dict(numbered)
        self.failure: str | None = None
        self._filter = layer_filter(pattern)
        self._means = RankMeans(ranks)
        self._step: StepReplica | None = None
        self._lr: float | None = None

    def begin(self, copy_step: Callable[[], StepReplica]) -> None:
        """Copy a step that is about to begin."""
        self._step = self._lr = None
        if self.failure:
            return
        try:
            self._step = copy_step()
        except Exception as error:  # noqa: BLE001 - the rest of the monitor, and training, go on
            self.failure = f"the model or the batch cannot be copied ({type(error).__name__}: {error})"

    def note_lr(self, optimizer: Optimizer) -> None:
        """Take the learning rate with which the step is made: the largest of the parameter groups'."""
        if self._step is not None and self._lr is None:
            self._lr = max(float(group["lr"]) for group in optimizer.param_groups)

    def finish(self, model: nn.Module) -> Gathered:
        """Tags and values of the step that has just ended, exchanged among ranks; none after a failure."""
        step, self._step = self._step, None
        values: dict[str, Tensor] = {}
        if step is not None and not self.failure:
            try:
                with untouched(model):
                    values = self._measure(step, model)
            except Exception as error:  # noqa: BLE001 - the rest of the monitor, and training, go on
                self.failure = f"training_step cannot be repeated on a copy ({type(error).__name__}: {error})"
        return self._means.gather(list(values), list(values.values()), self.failure is not None)

    def _measure(self, step: StepReplica, model: nn.Module) -> dict[str, Tensor]:
        if self._lr is None:
            raise RuntimeError("no optimizer step was made")
        start, modules = self._start(step)
        if not start.grads:
            raise RuntimeError("the loss depends on no parameter of the copy")
        values = {f"smoothness/{name}": value for name, value in along_gradient(step, start, self._lr).items()}
        updated = {name: parameter.detach() for name, parameter in model.named_parameters()}
        weights = [weight for weight in find_weights(step.module) if self._filter.search(weight.layer)]
        for layer, shifts in covariate_shift(step, start, updated, modules, weights).items():
            values |= {f"{quantity}/{self.numbered[layer]}": value for quantity, value in shifts.items()}
        return values

    def _start(self, step: StepReplica) -> tuple[Evaluation, list[str]]:
        """Loss and gradient at W^t, and in which order the modules that hold parameters run."""
        twin = step.twin({})
        weights = [(weight.layer, weight.module) for weight in find_weights(twin)]
        holders = [name for name, module in twin.named_modules() if [*module.parameters(recurse=False)]]
        watching = {module for _, module in weights}
        # the numbers come from the weights' modules alone, and so are GradientMonitor's
        layers, order = (
            ForwardOrder((name, module) for name, module in twin.named_modules() if name in wanted)
            for wanted in (watching, set(holders))
        )
        layers.gate.open = order.gate.open = True
        start = step.run(twin)
        sorted_layers = layers.sort(weights)
        if not self.numbered:
            self.numbered = number(sorted_layers)
        for layer in sorted_layers:  # one that is unfrozen later gets the next number: no tag ever changes its name
            self.numbered.setdefault(layer, f"{len(self.numbered):02d}_{layer}")
        return start, order.sort([(name, name) for name in holders])


class SmoothnessTables(Tables):
    """Turns what a probe left into tables."""

    def read(self, steps: Sequence[Gathered]) -> list[Table]:
        """Tables of recorded steps, whose tensors are on the host."""
        numbers = iter(to_host([value for step in steps for value in step.values]))
        tables = []
        for step in steps:
            averaged = average(step, list(islice(numbers, len(step.values))))
            self.note(averaged.agreement)
            tables.append(Table.of(averaged.values))
        return tables
