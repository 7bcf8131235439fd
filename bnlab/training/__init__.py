"""Training after the thesis's protocol, and the record of a run."""

from bnlab.training.classifier import Classifier
from bnlab.training.divergence import DivergenceStop

__all__ = ["Classifier", "DivergenceStop"]
