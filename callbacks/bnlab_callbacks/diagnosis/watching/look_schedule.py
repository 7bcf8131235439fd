"""The steps that a diagnosis looks at: all at the beginning of a run, where most failures show, then fewer."""

_FEWER = 5  # behind the first steps one of so many, until so many times as many


class LookSchedule:
    """Every step at the beginning, then one of five for a while, then one of n.

    Args:
        first_steps: so many steps are all recorded, and one of five of the next four times as many.
        every_n_steps: and then one of so many.
    """

    def __init__(self, first_steps: int, every_n_steps: int) -> None:
        self.first_steps = first_steps
        self.every_n_steps = every_n_steps

    def records(self, step: int) -> bool:
        """Whether a step is recorded."""
        if step < self.first_steps or step % self.every_n_steps == 0:
            return True
        return step % _FEWER == 0 and step < self.early

    @property
    def early(self) -> int:
        """Steps from the beginning in which every fifth or more are recorded."""
        return _FEWER * self.first_steps

    def latest(self, step: int) -> int:
        """The last recorded step up to `step`."""
        dense, fewer = min(step, self.first_steps - 1), min(step, _FEWER * self.first_steps - 1)
        return max(dense, fewer - fewer % _FEWER, step - step % self.every_n_steps)

    def looks(self, step: int) -> bool:
        """Whether to look right after a recorded step, where looks cannot wait: of dense ones at every fifth."""
        return step < _FEWER or step % _FEWER == 0 or step >= self.first_steps
