"""A pytest plugin for Lightning before 2.6, whose `Trainer.fit` does not know `weights_only`.

    pytest -p tests.older_lightning tests/callbacks

`.ci/oldest` loads it. The tests ask for it so that checkpoints are known to hold plain data; releases before load all.
"""

from functools import wraps
from inspect import signature
from typing import Any

from lightning.pytorch import Trainer

if "weights_only" not in signature(Trainer.fit).parameters:
    _fit = Trainer.fit

    @wraps(_fit)
    def fit(self: Trainer, *args: Any, weights_only: bool | None = None, **others: Any) -> None:
        """Fit without the argument."""
        _fit(self, *args, **others)

    Trainer.fit = fit  # type: ignore[method-assign]
