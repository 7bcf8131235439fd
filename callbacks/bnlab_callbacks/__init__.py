"""Lightning callbacks that show, layer by layer, why a net does not train.

>>> from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor
>>> trainer = Trainer(callbacks=[GradientMonitor(), ActivationMonitor(), EpochTimer()])  # doctest: +SKIP

The package needs torch and Lightning only, as `lightning` or as `pytorch_lightning`; pictures need matplotlib, Parquet
files pyarrow.
"""

from bnlab_callbacks.activation_monitor import ActivationMonitor
from bnlab_callbacks.batch_norm_monitor import BatchNormMonitor
from bnlab_callbacks.chart_layout import ChartLayout
from bnlab_callbacks.epoch_timer import EpochTimer
from bnlab_callbacks.gradient_monitor import GradientMonitor
from bnlab_callbacks.heatmap import LayerHeatmap
from bnlab_callbacks.histograms import GradientHistograms
from bnlab_callbacks.record_file import RecordFile, read_records

__all__ = [
    "ActivationMonitor",
    "BatchNormMonitor",
    "ChartLayout",
    "EpochTimer",
    "GradientHistograms",
    "GradientMonitor",
    "LayerHeatmap",
    "RecordFile",
    "read_records",
]
