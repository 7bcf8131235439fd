"""Training after the thesis's protocol: the LightningModule, and what ends a run."""

from bnlab.training.classifier import Classifier
from bnlab.training.divergence import DivergenceStop

__all__ = ["Classifier", "DivergenceStop"]
