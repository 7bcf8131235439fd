"""Internal covariate shift as Santurkar et al. define it (2018, How Does Batch Normalization Help Optimization?)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bnlab_callbacks.core.device import widest
from bnlab_callbacks.core.weights import Weight, real
from bnlab_callbacks.replica.step_replica import Evaluation, StepReplica


def shift(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """How a layer's gradient G changed to G', both of one shape, as 0-dimensional tensors.

    - `ics_l2`: ‖G − G'‖₂
    - `ics_cos`: ⟨G, G'⟩ / (‖G‖₂‖G'‖₂), in [−1, 1]; NaN where one of them is 0
    """
    a, b = (_numbers(gradient) for gradient in (before, after))
    directions = [x / torch.linalg.vector_norm(x) for x in (a, b)]
    return {
        "ics_l2": torch.linalg.vector_norm(a - b),
        "ics_cos": torch.dot(*directions).clamp(-1, 1),
    }


def covariate_shift(
    step: StepReplica,
    start: Evaluation,
    updated: Mapping[str, Tensor],
    modules: Sequence[str],
    weights: Sequence[Weight],
) -> dict[str, dict[str, Tensor]]:
    """`shift` of each weight's gradient, by its layer's name (definition 2.1 of the paper).

    G_i = ∇_{W_i} L(W_1^t, …, W_k^t; x), G'_i = ∇_{W_i} L(W_1^{t+1}, …, W_{i−1}^{t+1}, W_i^t, …, W_k^t; x): the gradient
    that the layer gets once the optimizer step has moved all parameters (also biases, and those of norms) of the
    modules before its own. Weights of one module share an evaluation; modules before which nothing moved need none. So
    there are at most as many evaluations as modules with weights.

    Args:
        step: the step, at W^t.
        start: loss and gradient at W^t.
        updated: W^{t+1}, by the parameters' names.
        modules: names of the modules that hold parameters, in the order in which they run.
        weights: the weights W_i whose gradients are compared; those without a gradient are left out.
    """
    names = {id(parameter): name for name, parameter in step.weights.items()}
    watched: dict[str, list[Weight]] = defaultdict(list)
    for weight in weights:
        watched[weight.module].append(weight)
    found: dict[str, dict[str, Tensor]] = {}
    mixed: dict[str, Tensor] = {}
    here, seen = start, 0
    for module in modules:
        if watched[module] and len(mixed) > seen:
            here, seen = step.evaluate(mixed), len(mixed)
        for weight in watched[module]:
            name = names[id(weight.parameter)]
            if name in start.grads and name in here.grads:
                found[weight.layer] = shift(start.grads[name], here.grads[name])
        held = [names[id(parameter)] for parameter in step.module.get_submodule(module).parameters(recurse=False)]
        mixed |= {name: updated[name] for name in held}
    return found


def _numbers(gradient: Tensor) -> Tensor:
    """All numbers in one dimension, in the widest dtype: squares of gradients of 1e-34 are 0 in float32."""
    return real(gradient.detach()).reshape(-1).to(widest(gradient.device))
