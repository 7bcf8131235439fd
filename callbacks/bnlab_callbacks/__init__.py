"""Lightning callbacks that show, layer by layer, why a net does not train.

>>> from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor
>>> trainer = Trainer(callbacks=[GradientMonitor(), ActivationMonitor(), EpochTimer()])  # doctest: +SKIP

The package needs torch and Lightning only, as `lightning` or as `pytorch_lightning`.
"""

from bnlab_callbacks.activation_monitor import ActivationMonitor
from bnlab_callbacks.epoch_timer import EpochTimer
from bnlab_callbacks.gradient_monitor import GradientMonitor

__all__ = ["ActivationMonitor", "EpochTimer", "GradientMonitor"]
