"""Lightning callbacks that show, layer by layer, why a net does not train.

>>> from bnlab_callbacks import Diagnostics
>>> trainer = Trainer(callbacks=Diagnostics())  # doctest: +SKIP

`Diagnostics` holds all that suits most runs; each part is a callback of its own, too: `GradientMonitor`,
`ActivationMonitor`, `EpochTimer`, `TrainingDiagnosis` and others.

The package needs torch and Lightning only, as `lightning` or as `pytorch_lightning`; pictures need matplotlib, Parquet
files pyarrow. What is not listed in `__all__`, here or in a room of the package, is private and may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlab_callbacks.activation_monitor import ActivationMonitor
    from bnlab_callbacks.attention_monitor import AttentionMonitor
    from bnlab_callbacks.batch_norm_monitor import BatchNormMonitor
    from bnlab_callbacks.chart_layout import ChartLayout
    from bnlab_callbacks.core.files import replace_file
    from bnlab_callbacks.core.lightning.publisher import publish_kept, publish_values
    from bnlab_callbacks.core.lightning.trainer import gather_ranks, moment_of
    from bnlab_callbacks.core.random_state import RandomState
    from bnlab_callbacks.core.record_table import Row, last_record, read_records
    from bnlab_callbacks.core.schedule import RecordSchedule
    from bnlab_callbacks.diagnosis.preflight import Preflight, preflight
    from bnlab_callbacks.diagnosis.training_diagnosis import TrainingDiagnosis
    from bnlab_callbacks.diagnostics import Diagnostics
    from bnlab_callbacks.epoch_timer import EpochTimer
    from bnlab_callbacks.gradient_monitor import GradientMonitor
    from bnlab_callbacks.gradient_noise import GradientNoise
    from bnlab_callbacks.heatmap import LayerHeatmap
    from bnlab_callbacks.histograms import GradientHistograms
    from bnlab_callbacks.pages.run_table import diagnose_text, show_text
    from bnlab_callbacks.record_file import RecordFile
    from bnlab_callbacks.statistics.losses import first_non_finite
    from bnlab_callbacks.weight_monitor import WeightMonitor

# imported when first used: every Trainer of an environment with this package loads it, to ask for plugins
_MODULES = {
    "ActivationMonitor": "activation_monitor",
    "AttentionMonitor": "attention_monitor",
    "BatchNormMonitor": "batch_norm_monitor",
    "ChartLayout": "chart_layout",
    "Diagnostics": "diagnostics",
    "EpochTimer": "epoch_timer",
    "GradientHistograms": "histograms",
    "GradientMonitor": "gradient_monitor",
    "GradientNoise": "gradient_noise",
    "LayerHeatmap": "heatmap",
    "Preflight": "diagnosis.preflight",
    "RandomState": "core.random_state",
    "RecordFile": "record_file",
    "RecordSchedule": "core.schedule",
    "Row": "core.record_table",
    "TrainingDiagnosis": "diagnosis.training_diagnosis",
    "WeightMonitor": "weight_monitor",
    "diagnose_text": "pages.run_table",
    "first_non_finite": "statistics.losses",
    "gather_ranks": "core.lightning.trainer",
    "last_record": "core.record_table",
    "moment_of": "core.lightning.trainer",
    "preflight": "diagnosis.preflight",
    "publish_kept": "core.lightning.publisher",
    "publish_values": "core.lightning.publisher",
    "read_records": "core.record_table",
    "replace_file": "core.files",
    "show_text": "pages.run_table",
}
__all__ = [
    "ActivationMonitor",
    "AttentionMonitor",
    "BatchNormMonitor",
    "ChartLayout",
    "Diagnostics",
    "EpochTimer",
    "GradientHistograms",
    "GradientMonitor",
    "GradientNoise",
    "LayerHeatmap",
    "Preflight",
    "RandomState",
    "RecordFile",
    "RecordSchedule",
    "Row",
    "TrainingDiagnosis",
    "WeightMonitor",
    "diagnose_text",
    "first_non_finite",
    "gather_ranks",
    "last_record",
    "moment_of",
    "preflight",
    "publish_kept",
    "publish_values",
    "read_records",
    "replace_file",
    "show_text",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
