"""An optimizer as the rules see it: the parameters that it holds, its learning rate and its schedule."""

from typing import NamedTuple


class Schedule(NamedTuple):
    """What is known of a learning rate's schedule.

    Attributes:
        name: its class.
        by_epoch: whether it makes a step at the end of an epoch, else after a step of the optimizer.
        every: so many of these a step.
        length: its own steps until it has run its course, None where that is not known.
        peak: its own steps until the learning rate is highest; None where that is not known.
        peak_rate: the learning rate then.
        returns: whether the rate rises again after it has fallen, for all that is known.
    """

    name: str
    by_epoch: bool
    every: int = 1
    length: int | None = None
    peak: int | None = None
    peak_rate: float | None = None
    returns: bool = False


class OptimizerState(NamedTuple):
    """An optimizer when a recorded step began.

    Attributes:
        name: its class.
        rate: the largest learning rate of its groups that train; None where there is none, or it is on an accelerator.
        base: the rate that its schedule is a multiple of; `rate` without a schedule.
        began: the first rate that was seen.
        highest: the largest one so far.
        nothing_since: the step from which on the rate has been below a ten-thousandth of `highest` or `base`.
        schedule: None where there is none, or nobody knows when it makes its steps.
        own: whether it is of torch.optim, which changes weights in place and keeps no copy of them.
        lost_epsilon: the ε that is 0 in the half precision of the parameters; None where none is lost.
        uncleared: steps in a row that were made with gradients to which the step before had been made already.
    """

    name: str
    rate: float | None = None
    base: float | None = None
    began: float | None = None
    highest: float = 0.0
    nothing_since: int | None = None
    schedule: Schedule | None = None
    own: bool = False
    lost_epsilon: float | None = None
    uncleared: int = 0

    @property
    def held_back(self) -> bool:
        """Whether a schedule has held the rate below half of its base so far, as a warm-up does."""
        return self.held_back_to(0.5)

    def held_back_to(self, share: float) -> bool:
        """Whether it has held it below a share of its base."""
        return self.base is not None and self.highest < share * self.base

    @property
    def at_zero(self) -> bool:
        """Whether it is a schedule that has the rate at 0."""
        return self.rate == 0 and (self.schedule is not None or self.highest > 0)

    @property
    def settled(self) -> bool:
        """Whether the rate is that of its schedule, or its first one, and no warm-up has led to it or is to come."""
        return not self.held_back and (self.began is None or self.highest <= 1.5 * self.began)


class Coverage(NamedTuple):
    """How much of a model its optimizers hold, in single weights.

    Attributes:
        trainable: of the model, with `requires_grad`.
        held: of these, in some optimizer.
        frozen: in optimizers, of the model, without `requires_grad`.
        foreign: in optimizers, but not of the model.
        moved: whether any trainable one has changed since training began.
        reached: whether any trainable one had a gradient.
    """

    trainable: int
    held: int
    frozen: int = 0
    foreign: int = 0
    moved: bool = False
    reached: bool = False
