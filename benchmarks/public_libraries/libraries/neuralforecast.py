"""Models of neuralforecast, which makes its Trainer itself, on noisy weekly waves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import MAE, DistributionLoss
from neuralforecast.models import LSTM, NHITS, DeepAR, PatchTST, TiDE

DISTRIBUTION = "neuralforecast"


def waves() -> pd.DataFrame:
    """Eight series of 120 days."""
    days = np.arange(120)
    tables = []
    for series in range(8):
        values = 20 + 5 * series + 4 * np.sin(2 * np.pi * days / 7 + series) + np.random.randn(120)
        tables.append(pd.DataFrame({"unique_id": f"s{series}", "ds": pd.Timestamp("2024-01-01"), "y": values}))
        tables[-1]["ds"] += pd.to_timedelta(days, unit="D")
    return pd.concat(tables)


def _fit(model: Callable[..., Any], **options: Any) -> None:
    defaults = {"loss": MAE(), "max_steps": 150, "learning_rate": 1e-3, "scaler_type": "standard", "batch_size": 8}
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    made = model(h=7, input_size=28, windows_batch_size=64, **(defaults | options), **quiet)
    NeuralForecast([made], freq="D").fit(waves())


FITS: dict[str, Callable[[], None]] = {
    "NHITS": lambda: _fit(NHITS, mlp_units=3 * [[64, 64]]),
    "LSTM": lambda: _fit(LSTM, encoder_hidden_size=32, decoder_hidden_size=32, max_steps=80),
    "DeepAR": lambda: _fit(DeepAR, lstm_hidden_size=32, loss=DistributionLoss("Normal"), learning_rate=5e-3),
    "PatchTST": lambda: _fit(PatchTST, hidden_size=16, n_heads=4, linear_hidden_size=32, patch_len=7, stride=7),
    "TiDE": lambda: _fit(TiDE, hidden_size=32, decoder_output_dim=8, temporal_decoder_dim=16),
}
