"""A run's properties beside its records: what its loss compares, its optimizers, and what is known of its layers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bnlab_callbacks.diagnosis.observations.optimizer_state import Coverage, OptimizerState


class NormBatch(NamedTuple):
    """The smallest batch that a batch norm got: values of one channel, and samples."""

    values: int
    samples: int


KINDS = ("", "cross_entropy", "binary", "squared", "absolute")  # of tasks
# whose values a loss may consume; the last two divide by a sum over one unit, or over the samples
OUTPUTS = (
    *("", "sigmoid", "hard sigmoid", "tanh", "ReLU", "softplus", "exp", "log softmax", "log sigmoid", "softmax"),
    *("softmax of one", "softmax of the batch"),
)


class Task(NamedTuple):
    """What a loss compares, seen in the training step; numbers alone, so that ranks can exchange them.

    Attributes:
        kind: place in `KINDS`; 0 where it is unknown.
        chance: the loss of the best constant output on the targets so far; NaN where it is unknown.
        classes: number of classes; 2 for numbers between 0 and 1; 0 without.
        output: place in `OUTPUTS` of the function that made the outputs; 0 for another.
        low: the least value that this function reaches.
        high: the largest.
        broadcast: whether each of N outputs is compared with each of N targets.
        negated: whether the loss is the negative of one of this kind.
        probabilities: whether the loss takes probabilities for logits.
        not_normalised: how far outputs that should be log probabilities are from that: |ln Σ exp|.
        label_low: the least target so far.
        label_high: the largest.
        label_count: number of targets so far.
    """

    kind: float = 0
    chance: float = math.nan
    classes: float = 0
    output: float = 0
    low: float = -math.inf
    high: float = math.inf
    broadcast: float = 0
    negated: float = 0
    probabilities: float = 0
    not_normalised: float = 0
    label_low: float = math.inf
    label_high: float = -math.inf
    label_count: float = 0

    @property
    def name(self) -> str:
        """Of its kind; empty where it is unknown."""
        return KINDS[int(self.kind)]

    @property
    def output_function(self) -> str:
        """What made the outputs; empty for another function than those in `OUTPUTS`."""
        return OUTPUTS[int(self.output)]

    @property
    def of_numbers(self) -> bool:
        """Whether it is a regression, whose targets may lie anywhere."""
        return self.name in ("squared", "absolute")

    @property
    def labels_differ(self) -> bool:
        """Whether two targets so far were different."""
        return self.label_high > self.label_low


@dataclass
class Facts:
    """A run's properties beside its records; None or empty where they are not known.

    Attributes:
        chance_loss: the loss of guessing, the best constant output's: about ln C for cross entropy over C classes.
        task: what the loss compares.
        gradient_clip: the norm that the Trainer clips gradients to.
        clip_value: what the Trainer clips each of their values to.
        scaled: whether a loss scaler is in use, whose overflows are no fault.
        without_gradient: layers that an optimizer holds and whose gradient was None in every step so far.
        without_optimizer: trainable layers that no optimizer holds.
        frozen: layers with `requires_grad=False`.
        constant: layers all of whose weights were equal when training began → that weight.
        gates: activations that weigh something: gates, soft caps, attention scores; saturated on purpose.
        norm_eval: batch-norm layers in evaluation mode while the module trains, with trainable scales.
        norm_momentum: batch-norm layers → their momentum (None: cumulative average).
        norm_values: batch-norm layers → the smallest training batch so far.
        softmax_twice: whether the loss takes probabilities for logits.
        weights: trained layer → number of its weights, in order of execution.
        fans: linear, convolution and recurrent layers → inputs or outputs of a unit, whichever are fewer.
        rescaled: those of them right before a norm that cancels their scale.
        optimizers: each as it was when the step began.
        coverage: how much of the model they hold.
        resting: layers of an optimizer's groups with a learning rate of 0, beside others.
        samples: that the present step is made of.
        run_steps: optimizer steps that the run is to have.
        epoch_steps: optimizer steps of an epoch.
        bare_pairs: linear layers that follow one another with nothing between them.
        has: what there is in the net or the run: `norm`, …; see `fitting_advice.fitting`.
        inputs: linear and convolution layers → inputs of a unit.
    """

    chance_loss: float | None = None
    task: Task = field(default_factory=Task)
    gradient_clip: float | None = None
    clip_value: float | None = None
    scaled: bool = False
    without_gradient: tuple[str, ...] = ()
    without_optimizer: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    constant: Mapping[str, float] = field(default_factory=dict)
    gates: tuple[str, ...] = ()
    norm_eval: tuple[str, ...] = ()
    norm_momentum: Mapping[str, float | None] = field(default_factory=dict)
    norm_values: Mapping[str, NormBatch] = field(default_factory=dict)
    softmax_twice: bool = False
    weights: Mapping[str, int] = field(default_factory=dict)
    fans: Mapping[str, int] = field(default_factory=dict)
    rescaled: frozenset[str] = frozenset()
    optimizers: tuple[OptimizerState, ...] = ()
    coverage: Coverage | None = None
    resting: tuple[str, ...] = ()
    samples: int | None = None
    run_steps: int | None = None
    epoch_steps: int | None = None
    bare_pairs: tuple[tuple[str, str], ...] = ()
    has: frozenset[str] = frozenset()
    inputs: Mapping[str, int] = field(default_factory=dict)
