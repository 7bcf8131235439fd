"""Thresholds that several rules or the preflight share; their reasons stand where they are used."""

INITIAL_LOSS = 50.0  # × the loss of guessing
VANISHED = 1e-6  # ‖g‖/‖w‖
SPREAD = 1e5  # of it over the layers
COLLAPSED = 1e-3  # standard deviation of logits over a batch
INPUT_STD, INPUT_CENTRE = (0.05, 20.0), 5.0
FEW_VALUES, FEW_SAMPLES = 8, 4  # of a batch, for each channel of a batch norm


def standardised(mean: float, std: float) -> bool:
    """Whether inputs are near mean 0 and standard deviation 1."""
    return INPUT_STD[0] <= std <= INPUT_STD[1] and abs(mean) <= INPUT_CENTRE * std
