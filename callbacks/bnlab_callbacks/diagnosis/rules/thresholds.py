"""Thresholds and advice that the rules of a run and the look before it share; why, stands with those who use them."""

from __future__ import annotations

INITIAL_LOSS = 50.0  # × the loss of a net that knows nothing
VANISHED = 1e-6  # ‖g‖/‖w‖
SPREAD = 1e5  # of it over the layers
COLLAPSED = 1e-3  # standard deviation of logits over a batch
INPUT_STD, INPUT_CENTRE = (0.05, 20.0), 5.0
FEW_VALUES, FEW_SAMPLES = 8, 4  # that a channel of a batch norm has to normalize with

BETTER_INIT = (
    "the activation's own initialization (--model.init auto), or batch normalization (--model.batch_norm true)"
)
STANDARDISE = "subtract the training set's mean and divide by its standard deviation (--data.standardize global)"


def standardised(mean: float, std: float) -> bool:
    """Whether inputs are near mean 0 and standard deviation 1."""
    return INPUT_STD[0] <= std <= INPUT_STD[1] and abs(mean) <= INPUT_CENTRE * std
