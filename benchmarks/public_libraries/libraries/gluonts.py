"""Estimators of gluonts, which make their Trainer themselves, on noisy weekly waves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from gluonts.dataset.common import ListDataset
from gluonts.torch import (
    DeepAREstimator,
    PatchTSTEstimator,
    SimpleFeedForwardEstimator,
    TemporalFusionTransformerEstimator,
)

DISTRIBUTION = "gluonts"


def waves() -> ListDataset:
    """Eight series of 150 days."""
    days = np.arange(150)
    series = [20 + 5 * number + 4 * np.sin(2 * np.pi * days / 7) + np.random.randn(150) for number in range(8)]
    return ListDataset([{"start": pd.Period("2024-01-01", "D"), "target": values} for values in series], freq="D")


def _fit(estimator: Callable[..., Any], epochs: int = 6, **options: Any) -> None:
    quiet = {"max_epochs": epochs, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    made = estimator(prediction_length=7, context_length=28, num_batches_per_epoch=25, trainer_kwargs=quiet, **options)
    made.train(waves())


FITS: dict[str, Callable[[], None]] = {
    "SimpleFeedForward": lambda: _fit(SimpleFeedForwardEstimator),
    "DeepAR": lambda: _fit(DeepAREstimator, 4, freq="D", hidden_size=20, num_layers=1),
    "TFT": lambda: _fit(TemporalFusionTransformerEstimator, 4, freq="D", hidden_dim=8, variable_dim=8, num_heads=2),
    "PatchTST": lambda: _fit(PatchTSTEstimator, patch_len=7, stride=7, d_model=16, nhead=4, dim_feedforward=32),
}
