"""What rules look at: observations of recorded steps, the losses of all steps, and facts about the run."""

from bnlab_callbacks.diagnosis.observations.facts import KINDS, OUTPUTS, Facts, NormBatch, Task
from bnlab_callbacks.diagnosis.observations.history import OF_THE_FIRST_BATCH, History, Observation
from bnlab_callbacks.diagnosis.observations.losses import Losses
from bnlab_callbacks.diagnosis.observations.optimizer_state import Coverage, OptimizerState, Schedule
from bnlab_callbacks.diagnosis.observations.updates import EarlyChanges, MedianUpdates, median_layer

__all__ = [
    "KINDS",
    "OF_THE_FIRST_BATCH",
    "OUTPUTS",
    "Coverage",
    "EarlyChanges",
    "Facts",
    "History",
    "Losses",
    "MedianUpdates",
    "NormBatch",
    "Observation",
    "OptimizerState",
    "Schedule",
    "Task",
    "median_layer",
]
